"""What is written is what the library itself writes: names, layouts and configs that other versions read."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.lm.model_config import position_limit, read_config, with_older_keys
from dpo.lm.models import load_model
from dpo.lm.weights import canonical_tensors, write_weights

SIZES = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 2},
    "qwen3_moe": {"num_experts": 2, "moe_intermediate_size": 8, "num_experts_per_tok": 1},
    "olmoe": {"num_experts": 2, "num_experts_per_tok": 1},
    "deepseek_v3": {
        "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 2,
    },
    "jamba": {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
}  # fmt: skip


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_what_the_library_writes(tmp_path, kind):
    torch.manual_seed(0)
    start, export = tmp_path / "start", tmp_path / "export"
    export.mkdir()
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})).save_pretrained(start)
    model = load_model(start, torch.float32)
    write_weights(export, model.on_disk(canonical_tensors(model.network)))
    model.write_config(export)
    equal(load_file(export / "model.safetensors"), load_file(start / "model.safetensors"))
    equal(load_model(export, torch.float32).network.state_dict(), model.network.state_dict())


ROPES = {
    "plain": ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
    "scaled": (
        {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "partial": (
        {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
}


@pytest.mark.parametrize("case", ROPES)
def test_older_loaders_find_the_rotary_positions(case):
    rope, older = ROPES[case]
    assert with_older_keys({"model_type": "llama", "rope_parameters": rope}) == {
        "model_type": "llama", "rope_parameters": rope, **older,
    }  # fmt: skip


def test_where_older_keys_could_not_say_it_there_are_none():
    by_layer = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    assert with_older_keys(by_layer) == by_layer
    assert with_older_keys({"n_embd": 4}) == {"n_embd": 4}


def test_keys_that_are_there_stay_and_a_config_inside_gets_its_own():
    inside = {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}
    assert with_older_keys({**inside, "rope_theta": 3.0, "text_config": inside}) == {
        **inside, "rope_theta": 3.0, "text_config": {**inside, "rope_theta": 7.0},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi", "gemma3_text", "mixtral"])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_the_installed_library_reads_the_same_config_as_before(tmp_path, kind, theta):
    given = AutoConfig.for_model(kind, **SIZES)
    if "rope_theta" in given.rope_parameters:
        given.rope_parameters["rope_theta"] = theta
    given.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(with_older_keys(read_config(tmp_path))))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == given.rope_parameters


def test_numbers_that_json_does_not_have(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba2", "limit": [0.0, {"__float__": "Infinity"}]}')
    assert read_config(tmp_path)["limit"] == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"max_target_positions": 448}, 448),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
        ({"text_config": None}, None),
    ],
)
def test_the_longest_sequence_by_any_name(config, limit):
    assert position_limit(config) == limit
