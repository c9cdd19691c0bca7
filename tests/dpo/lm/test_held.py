"""A model is one reference, whether its tensors have the names of the library's files or those of its memory."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.lm import weights
from dpo.lm.held import digest_on_disk, is_held
from dpo.lm.weight_files import shard_files, weights_digest
from dpo.lm.weights import canonical_tensors, write_weights
from tests.dpo.lm.test_on_disk import KINDS, SIZES

CONVERTED = {"gpt_neox", "mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "jamba"}


def two_namings(folder, kind, dtype=torch.float32):
    """The folder as the library saves a model, and one with the names that it has in memory."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})
    network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name in ("saved", "held"):
        network.save_pretrained(folder / name)
    (folder / "held" / "model.safetensors").unlink()
    write_weights(folder / "held", canonical_tensors(network))
    return folder / "saved", folder / "held"


@pytest.mark.parametrize("kind", KINDS)
def test_both_namings_have_one_digest(tmp_path, kind):
    saved, held = two_namings(tmp_path, kind)
    assert not is_held(saved)
    assert is_held(held) == (weights_digest(held) != weights_digest(saved)) == (kind in CONVERTED)
    assert digest_on_disk(held) == weights_digest(saved)


def test_one_digest_in_bfloat16_and_over_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 3000)
    saved, held = two_namings(tmp_path, "mixtral", torch.bfloat16)
    assert len(shard_files(held)) > 2
    assert is_held(held) and digest_on_disk(held) == weights_digest(saved)


def test_another_weight_is_another_digest(tmp_path):
    saved, held = two_namings(tmp_path, "mixtral")
    network = AutoModelForCausalLM.from_pretrained(held)
    with torch.no_grad():
        network.model.layers[1].mlp.experts.gate_up_proj[1, 5, 3] += 1e-3
    write_weights(held, canonical_tensors(network))
    assert digest_on_disk(held) != weights_digest(saved)
