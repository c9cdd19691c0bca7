"""The config beside trained weights is the start's, but for what trained weights have of their own."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.lm.models import load_model
from dpo.lm.weights import canonical_tensors, write_weights
from pipeline.models.start import copy_config

SIZES = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loader_that_asks_the_config_gets_the_trained_numbers(tmp_path, dtype):
    """From a start of the other type: in float32, numbers that bfloat16 does not have."""
    start, written = tmp_path / "start", tmp_path / "written"
    written.mkdir()
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES), dtype=other).save_pretrained(start)
    model = load_model(start, dtype)
    with torch.no_grad():
        model.network.lm_head.weight.add_(1e-3 * torch.randn(96, 16).to(dtype))
    write_weights(written, model.on_disk(canonical_tensors(model.network)))
    copy_config(start, written, str(dtype).removeprefix("torch."))
    loaded = AutoModelForCausalLM.from_pretrained(written)
    assert loaded.dtype == dtype
    assert torch.equal(loaded.lm_head.weight, model.network.lm_head.weight)


def test_all_else_stays(tmp_path):
    config = {"dtype": "float32", "text_config": {"torch_dtype": "float16", "hidden_size": 4}, "n": {"dtype": None}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    beside = ["generation_config.json", "preprocessor_config.json", "processor_config.json"]
    for name in beside:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "copy").mkdir()
    copy_config(tmp_path, tmp_path / "copy", "bfloat16")
    inside = {"torch_dtype": "bfloat16", "hidden_size": 4}
    found = json.loads((tmp_path / "copy" / "config.json").read_text(encoding="utf-8"))
    assert found == {"dtype": "bfloat16", "text_config": inside, "n": {"dtype": None}}
    assert [(tmp_path / "copy" / name).read_text(encoding="utf-8") for name in beside] == ["{}"] * 3
