"""What a run with an adapter exports: the adapter as peft reads it, or a model that has it merged in."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.dpo.lm.adapters import apart, expected, lora, saved
from tests.pipeline.adapted import NEW, prepared, whole

pytestmark = pytest.mark.group


@pytest.fixture(scope="module")
def trained(lab, tmp_path_factory):
    """A folder with a run that trained a new adapter."""
    folder = prepared(tmp_path_factory.mktemp("exports") / "lab")
    assert lab.line(folder, *NEW)["steps"] == 6
    return folder


def read_adapter(folder):
    return PeftModel.from_pretrained(whole(), folder).eval()


def test_the_adapters_folder_is_small_and_names_its_base_without_a_path(trained):
    export = trained / "runs" / "base" / "export"
    names = {path.name for path in export.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json"} | names & {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    }  # fmt: skip
    config = json.loads((export / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config.keys() <= {
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules",
        "bias", "inference_mode", "fan_in_fan_out", "init_lora_weights", "modules_to_save", "use_rslora", "use_dora",
    }  # fmt: skip
    tensors = load_file(export / "adapter_model.safetensors")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert (export / "adapter_model.safetensors").stat().st_size < size + 64_000
    card = (export / "README.md").read_text()
    assert (
        "library_name: peft" in card and "Served by vLLM as an adapter | yes, with max_lora_rank of at least 4" in card
    )
    assert "the policy's own start" in card and str(trained) not in card


def test_a_merged_model_gives_the_adapters_log_probs(lab, trained):
    """It is made later from the same run, without training, and takes the place of the adapter's folder."""
    export = trained / "runs" / "base" / "export"
    truth = expected(read_adapter(trained / "runs" / "base" / "weights"))
    assert apart(truth, expected(whole())) > 1e-3
    before = (trained / "runs" / "base" / "weights" / "adapter_model.safetensors").stat().st_mtime_ns
    assert lab.line(trained, *NEW, "export.merge=true")["steps"] == 6
    assert apart(expected(AutoModelForCausalLM.from_pretrained(export).eval()), truth) < 1e-5
    assert not (export / "adapter_config.json").exists()
    assert "Merged | into the base in float32, written in float32" in (export / "README.md").read_text()
    assert lab.line(trained, *NEW)["steps"] == 6
    assert (export / "adapter_config.json").exists()
    assert (trained / "runs" / "base" / "weights" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_merging_that_loses_the_adapter_is_refused_with_the_number(lab, trained):
    little = ("train.learning_rate=1e-5", "export.merge=true", "export.dtype=bfloat16", "run.name=little")
    said = lab.line(trained, *NEW, *little)
    assert said.startswith("InputError: Merging in bfloat16 would lose ")
    assert 'Set export.dtype = "float32", or keep the adapter' in said


KINDS = {
    "DoRA": ("llama", {"use_dora": True}),
    "experts": ("qwen3_moe", {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "a saved head of tied embeddings": ("llama-tied", {"modules_to_save": ["lm_head"]}),
    "a saved embedding of tied ones": ("llama-tied", {"modules_to_save": ["embed_tokens"]}),
    "single tokens": ("llama", {"trainable_token_indices": [5, 6, 7]}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS.keys())
def test_every_kind_merges_to_the_same_log_probs(tmp_path, kind, options):
    from dpo.lm.adapter_files import Worn
    from dpo.lm.merge import merge
    from tests.dpo.lm.adapters import network, sequences

    base = network(kind)
    theirs = lora(base, **options)
    folders = saved(base, tmp_path / "base"), saved(theirs, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    found = merge(folders[0], Worn(str(folders[1])), "float32", tmp_path / "out", sequences(), 0.1, "float32")
    assert (found.lost, found.gap) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=5e-6))
    assert found.untied == ("tied" in kind)
    config = json.loads((folders[0] / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(
        json.dumps(config | ({"tie_word_embeddings": False} if found.untied else {}))
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert apart(expected(merged), expected(theirs)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "lost"), [(0.03, 0.04), (0.01, 0.31), (0.003, 0.89), (0.001, 0.99)])
def test_small_changes_round_away_in_bfloat16(tmp_path, scale, lost):
    """The share that is lost, of adapters with weights of this scale on a base in bfloat16."""
    from dpo.lm.adapter_files import Worn
    from dpo.lm.merge import merge
    from tests.dpo.lm.adapters import sequences

    base = whole(torch.bfloat16)
    folders = saved(base, tmp_path / "base"), saved(lora(base.float(), scale=scale), tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    found = merge(folders[0], Worn(str(folders[1])), "bfloat16", tmp_path / "out", sequences(), 0.1, "bfloat16")
    assert found.lost == pytest.approx(lost, rel=0.3)
    assert (tmp_path / "out" / "model.safetensors").exists() == (found.lost <= 0.1)
