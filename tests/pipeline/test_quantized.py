"""Adapters on a base in 4 or 8 bits, on a CPU: trained, resumed, compared with their reference, merged."""

import math
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dpo.lm.adapter_files import Worn
from dpo.lm.models import load_model
from pipeline.models.sizing import QUANTIZED
from tests.dpo.lm.adapters import computed, expected, lora, saved
from tests.pipeline.adapted import NEW, prepared, told, whole
from tests.pipeline.lab import losses

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.group
MORE = ("train.epochs=4", "policy.adapter.target_modules=all-linear")  # 24 steps


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_it_trains_resumes_and_merges_into_the_dequantized_base(lab, tmp_path, kind):
    folder = prepared(tmp_path / "lab")
    words = (*NEW, *MORE, f"policy.quantize={kind}", "deepspeed.stage=2")
    assert lab.line(folder, until="score")["sequences_scored"] == 120
    found = lab.line(folder, *words, "run.name=quantized", "export.merge=true")
    assert isinstance(found, dict), found
    assert (found["steps"], found["sequences_scored"]) == (24, 120)  # of another reference than the whole base's
    assert found["loss_first"] == pytest.approx(math.log(2), abs=2e-6)
    assert found["loss_last"] < 0.5
    assert lab.line(folder, *words, "run.name=killed", stop_at=15) == "stopped"
    assert lab.line(folder, *words, "run.name=killed", "export.merge=true")["steps"] == 24
    assert losses(folder, "killed") == losses(folder, "quantized")
    for file in (folder / "runs" / "killed" / "checkpoints").glob("*/state/*model_states.pt"):
        assert all("lora_" in name for name in torch.load(file, weights_only=False)["module"]), file
    merged = AutoModelForCausalLM.from_pretrained(folder / "runs" / "quantized" / "export").eval()
    worn = Worn(str(folder / "runs" / "quantized" / "weights"), kind)
    truth = computed(load_model(folder / "base", torch.float32, worn=worn))
    assert float((expected(merged) - truth).abs().mean()) < 0.02
    assert float((expected(whole()) - truth).abs().mean()) > 0.02


def test_quantization_makes_another_reference(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    plain, nf4, int8 = (lab.call(told, folder, *NEW, f"policy.quantize={kind}")[1] for kind in ("none", "nf4", "int8"))
    assert len({plain, nf4, int8}) == 3


def test_its_log_probs_are_pefts_on_the_same_base(tmp_path):
    from dpo.lm.quantized import quantization, with_gradients_

    base = saved(whole(), tmp_path / "base")
    folder = saved(lora(whole()), tmp_path / "adapter")
    for kind in ("nf4", "int8"):
        options = quantization(kind, torch.float32)
        theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
        with_gradients_(theirs)
        truth = expected(PeftModel.from_pretrained(theirs, folder).eval())
        ours = load_model(base, torch.float32, worn=Worn(str(folder), kind))
        assert float((computed(ours) - truth).abs().max()) < 5e-6, kind


@pytest.mark.parametrize(("kind", "most"), [("nf4", 1e-4), ("int8", 0.05)])
def test_its_gradients_are_those_on_the_dequantized_base(tmp_path, kind, most):
    """In evaluation mode, in which all models are trained. Products in 8 bits also round what they multiply."""
    from dpo.lm.adapters import put_on
    from dpo.lm.hf import HuggingFaceModel
    from dpo.lm.logprobs import LogprobModel
    from dpo.lm.quantized import quantization
    from tests.dpo.lm.adapters import sequences

    base = saved(whole(), tmp_path / "base")
    folder = saved(lora(whole(), target_modules="all-linear", scale=0.02), tmp_path / "adapter")
    ours = load_model(base, torch.float32, worn=Worn(str(folder), kind))
    options = quantization(kind, torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options).dequantize().float()
    found = []
    for model in (ours, HuggingFaceModel(plain, put_on(plain, folder, torch.float32))):
        scoring = LogprobModel(model).eval()
        scoring(scoring.collate(sequences(), 0)).logps.sum().backward()
        found.append({name: p.grad for name, p in model.adapted.trained()})
    for name, gradient in found[1].items():
        assert float((found[0][name] - gradient).norm() / gradient.norm()) < most, name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_weight_takes_the_bytes_that_sizing_counts(tmp_path, kind):
    """Those of a layer's matrices, with the scales of their blocks or rows; int8 has one scale per row."""
    from dpo.lm.quantized import quantization

    widths = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **widths)).save_pretrained(tmp_path)
    options = quantization(kind, torch.bfloat16)
    layer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, **options).model.layers[0]
    found = count = 0
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            weight: Any = module.weight
            scales = weight.quant_state.absmax if kind == "nf4" else weight.SCB
            found += weight.nbytes + scales.nbytes
            count += module.in_features * module.out_features
    assert count == 4 * 1024**2 + 3 * 1024 * 2816
    assert found / count == pytest.approx(QUANTIZED[kind], rel=0.003)
