"""Checkpoints of TRL 1.12.0's value-head models load here, and ours there: same logits, same values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppo.models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
from tests.ppo.models_tiny import lora, saved, tiny

HERE = Path(__file__).parent
KINDS = {"causal": AutoModelForCausalLMWithValueHead, "seq2seq": AutoModelForSeq2SeqLMWithValueHead}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def agrees(model, answers):
    """Whether a model of ours answers as written there."""
    logits, _, values = model.eval()(**{name: torch.tensor(ids) for name, ids in answers["inputs"].items()})
    torch.testing.assert_close(logits, torch.tensor(answers["logits"]), **CLOSE)
    torch.testing.assert_close(values, torch.tensor(answers["values"]), **CLOSE)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_folder_that_trl_saved_answers_as_there(kind):
    folder = HERE / "fixtures" / f"trl-1.12.0-{kind}"
    answers = json.loads((folder / "answers.json").read_text())
    assert answers["made_with"]["trl"] == "1.12.0"
    model = KINDS[kind].from_pretrained(folder)
    agrees(model, answers)
    assert torch.tensor(answers["values"]).abs().max() > 0.1


@pytest.mark.parametrize("kind", list(KINDS))
def test_saving_it_again_writes_the_same_names_and_numbers(kind, tmp_path):
    from safetensors.torch import load_file

    folder = HERE / "fixtures" / f"trl-1.12.0-{kind}"
    KINDS[kind].from_pretrained(folder).save_pretrained(tmp_path)
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def oracle(*arguments):
    """Run the script where TRL 1.12.0 is."""
    place = os.environ.get("RAY_ALIGN_TRL_1_12")
    if place is None:
        pytest.skip("RAY_ALIGN_TRL_1_12 names no folder with TRL 1.12.0; see tests/ppo/oracles/make_wrappers.py")
    environment = {**os.environ, "PYTHONPATH": place, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [sys.executable, str(HERE / "oracles" / "make_wrappers.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def answers_of_trl(tmp_path, kind, folder):
    oracle("load", kind, folder, tmp_path / "answers.json")
    return json.loads((tmp_path / "answers.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name"), [("causal", "gpt2"), ("causal", "llama"), ("seq2seq", "t5")])
def test_trl_reads_what_we_save(kind, name, tmp_path):
    model = KINDS[kind](tiny(name), v_head_init_strategy="normal")
    model.save_pretrained(tmp_path / "ours")
    agrees(model, answers_of_trl(tmp_path, kind, tmp_path / "ours"))


@pytest.mark.long
@pytest.mark.parametrize("kind", list(KINDS))
def test_we_read_what_trl_saves(kind, tmp_path):
    oracle("save", kind, tmp_path / "theirs", tmp_path / "answers.json")
    agrees(KINDS[kind].from_pretrained(tmp_path / "theirs"), json.loads((tmp_path / "answers.json").read_text()))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*has no value head saved")
def test_trl_reads_our_adapter_and_head(tmp_path):
    pytest.importorskip("peft")
    base = saved("llama", tmp_path / "base")
    model = KINDS["causal"].from_pretrained(base, peft_config=lora(), v_head_init_strategy="normal")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0)
    model.save_pretrained(tmp_path / "ours")
    agrees(model, answers_of_trl(tmp_path, "causal", tmp_path / "ours"))


@pytest.mark.long
def test_we_read_trls_adapter_and_head(tmp_path):
    pytest.importorskip("peft")
    base = saved("gpt2", tmp_path / "base")
    oracle("adapter", base, tmp_path / "theirs", tmp_path / "answers.json")
    agrees(KINDS["causal"].from_pretrained(tmp_path / "theirs"), json.loads((tmp_path / "answers.json").read_text()))
