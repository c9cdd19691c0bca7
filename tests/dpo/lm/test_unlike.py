"""Written weights have the names, shapes and types of their start, or what differs is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import Concatenate, WeightConverter

from dpo.lm.judge import unlike_start
from dpo.lm.model_config import ModelError
from dpo.lm.models import load_model
from dpo.lm.on_disk import on_disk, refuse_across_layers, separable
from dpo.lm.weight_files import Header, tensor_headers, unlike
from dpo.lm.weights import canonical_tensors, write_weights
from tests.dpo.tiny import tiny_model

SIZES = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}


def saved(folder: Path, kind: str, **fields) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **fields})).save_pretrained(folder)
    return folder


def written_of(start: Path, dtype: torch.dtype = torch.float32) -> Path:
    """What training writes at its end, without any training."""
    folder = start.with_name("written")
    folder.mkdir()
    model = load_model(start, dtype)
    write_weights(folder, model.on_disk(canonical_tensors(model.network)))
    return folder


def rewritten(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def renamed(old: str, new: str):
    return lambda tensors: {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


# Starts whose tensors are written under the library's names, though some have others.
FINE = {
    "a mixture of experts": ("mixtral", {"num_local_experts": 2}, None),
    "tied": ("gpt2", GPT2, None),
    "a tied head under another name": ("camembert", {"is_decoder": True}, None),
    "a head twice": ("gpt2", GPT2, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()}),
    "names without the prefix": ("gpt2", GPT2, renamed("transformer.", "")),
    "a buffer of older versions": (
        "llama", {}, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE)
def test_what_the_library_would_write_is_right(tmp_path, case):
    kind, fields, change = FINE[case]
    start = saved(tmp_path / "start", kind, **fields)
    if change is not None:
        rewritten(start, change)
    assert unlike_start(written_of(start), start, "float32") == []


@pytest.mark.parametrize("kind", ["mixtral", "gpt2", "camembert"])
def test_the_headers_alone_say_it_for_what_the_library_saved(tmp_path, kind):
    start = saved(tmp_path / "start", kind, **(GPT2 if kind == "gpt2" else {"is_decoder": True}))
    assert tensor_headers(written_of(start)) == tensor_headers(start)


def test_names_of_the_memory_in_the_start_stay(tmp_path):
    start = saved(tmp_path / "start", "mixtral", num_local_experts=2)
    held = list(canonical_tensors(AutoModelForCausalLM.from_pretrained(start)))
    write_weights(start, held)
    written = written_of(start)
    assert tensor_headers(written) == tensor_headers(start)
    assert "model.layers.0.mlp.experts.gate_up_proj" in tensor_headers(written)
    assert unlike_start(written, start, "float32") == []


def test_names_of_the_memory_are_found_where_the_start_has_others(tmp_path):
    start = saved(tmp_path / "start", "mixtral", num_local_experts=2)
    (tmp_path / "written").mkdir()
    write_weights(tmp_path / "written", canonical_tensors(load_model(start, torch.float32).network))
    found = unlike_start(tmp_path / "written", start, "float32")
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight was not written" in found
    assert "model.layers.1.mlp.experts.gate_up_proj is none of the start's" in found


def test_what_differs_is_named():
    start = {"a": Header("float32", (2, 3)), "b": Header("float32", ()), "c": Header("int64", (1,))}
    assert unlike(start, start, "float32") == []
    assert unlike({**start, "d": start["a"]}, start, "float32") == ["d is none of the start's"]
    assert unlike({"a": start["a"], "c": start["c"]}, start, "float32") == ["b was not written"]
    changed = {**start, "a": Header("float32", (3, 2)), "b": Header("float32", (1,))}
    assert unlike(changed, start, "float32") == [
        "a is 3 x 2, and 2 x 3 in the start",
        "b is 1, and a number in the start",
    ]


def test_the_type_is_that_of_training_or_of_the_start():
    start = {"a": Header("float32", (2,)), "b": Header("int64", (2,))}
    for dtype in ("float32", "bfloat16"):
        assert unlike({**start, "a": Header(dtype, (2,))}, start, dtype) == []
        said = ["a is float16, and float32 in the start"]
        assert unlike({**start, "a": Header("float16", (2,))}, start, dtype) == said
    assert unlike({**start, "b": Header("bfloat16", (2,))}, start, "bfloat16") == [
        "b is bfloat16, and int64 in the start"
    ]


def test_the_class_finds_what_is_not_there(tmp_path):
    start = saved(tmp_path / "start", "llama")
    written = written_of(start, torch.bfloat16)
    assert unlike_start(written, start, "bfloat16") == []
    rewritten(written, lambda t: {n: x for n, x in t.items() if "head" not in n and "layers.1.mlp" not in n})
    assert unlike_start(written, start, "bfloat16") == [
        f"{name} was not written"
        for name in ("lm_head.weight", *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("down", "gate", "up")))
    ]


def test_x_transformers(tmp_path):
    for name in ("start", "written"):
        (tmp_path / name).mkdir()
    model = tiny_model("x-rotary")
    model.write_config(tmp_path / "start")
    for name in ("start", "written"):
        write_weights(tmp_path / name, canonical_tensors(model.network))
    assert unlike_start(tmp_path / "written", tmp_path / "start", "float32") == []
    first, *_ = load_file(tmp_path / "written" / "model.safetensors")
    rewritten(tmp_path / "written", lambda tensors: {name: t for name, t in tensors.items() if name != first})
    assert unlike_start(tmp_path / "written", tmp_path / "start", "float32") == [f"{first} was not written"]


def joined_layers():
    """A Llama whose files would hold the norms of both layers as two halves of one tensor."""
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    norms = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(2)]
    network._weight_conversions = [WeightConverter(["model.norms"], norms, operations=[Chunked(dim=0)])]
    return network, norms


class Chunked(Concatenate):
    """Cuts what is one tensor on disk; turned back, it joins."""

    @property
    def reverse_op(self):
        return Concatenate(self.dim)


def test_a_type_that_joins_layers_is_written_at_once():
    network, norms = joined_layers()
    assert not separable(network)
    found = dict(on_disk(network, canonical_tensors(network)))
    held = network.state_dict()
    assert torch.equal(found["model.norms"], torch.cat([held[name] for name in norms]))
    assert found.keys() == held.keys() - {*norms} | {"model.norms"}


def test_such_a_type_is_refused_where_its_layers_are_divided():
    network, _ = joined_layers()
    refuse_across_layers(network)
    for parameter in network.parameters():
        parameter.ds_id, parameter.ds_shape = 0, parameter.shape  # the marks of ZeRO-3
    with pytest.raises(ModelError, match=r"LlamaForCausalLM join tensors of several layers.*deepspeed.stage to 2"):
        refuse_across_layers(network)
    network._weight_conversions = None
    refuse_across_layers(network)
