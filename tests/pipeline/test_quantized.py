"""Adapters on a base in 4 or 8 bits, on a CPU: trained, resumed, compared with their reference, merged."""

import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dpo.lm.adapter_files import Worn
from dpo.lm.models import load_model
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
