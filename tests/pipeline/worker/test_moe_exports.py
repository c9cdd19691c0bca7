"""Mixtures of experts, joined in memory, are trained under ZeRO-3 by two ranks: what is written at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo.lm.weight_files import tensor_headers
from pipeline.models.start import copy_config
from pipeline.worker.loop import Done
from tests.dpo.lm.kinds import tiny_folder
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import RATE, cached, distance, epochs_of, make_job, make_rows, plain_run

KINDS = ["mixtral", "deepseek_v3", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe"]


@pytest.mark.group
@pytest.mark.parametrize("kind", [*KINDS[:2], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[2:])])
def test_the_files_are_those_of_the_library_and_hold_what_was_trained(groups, tmp_path, kind):
    start = tiny_folder(tmp_path / "start", kind)
    epochs = epochs_of(cached(start, make_rows(8, 0)), [4, 4], 1)
    job = make_job(tmp_path / "job", start, epochs, 3)
    answers = groups.run(2, [Task(job, epochs, [])])[0]
    assert all(isinstance(answer, Done) for answer in answers), answers
    written = Path(job.weights)
    copy_config(start, written, "float32")
    network, said = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    network.save_pretrained(tmp_path / "theirs")
    assert tensor_headers(written) == tensor_headers(tmp_path / "theirs") == tensor_headers(start)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (written, tmp_path / "theirs"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    expected = plain_run(start, epochs, [RATE] * 2).weights[-1]
    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    moved = distance({name: before[name] for name in expected}, expected)
    assert moved > RATE  # 0.005
    assert distance({name: network.state_dict()[name] for name in expected}, expected) < 0.02 * moved
