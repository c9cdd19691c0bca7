"""What the guard says before the first update: how far policy and reference are apart, and what rounding explains."""

import re
from pathlib import Path

import pytest
import torch

from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.models import load_model
from pipeline.worker.guard import Gap, Noise, _cause
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import LLAMA, epochs_of, make_job, make_rows, model_folder, scored_logps

pytestmark = pytest.mark.group
NOISE = re.compile(r"Two layouts of these weights differ by (\S+) per token \((\S+) per pair\) here")
BUDGET = 10_000  # tokens; a step is one micro-batch


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose sums are long enough to round otherwise in batches of another size."""
    config = {**LLAMA, "hidden_size": 128, "intermediate_size": 512}
    return model_folder(tmp_path_factory.mktemp("models") / "wide", config)


def steps_of(model, dtype, shift):
    """One epoch; the reference is the start, asked one sequence at a time, and moved by so many nats per token."""
    asked, rows = LogprobModel(load_model(model, getattr(torch, dtype)), Way(shared=False)), make_rows(24, 0)
    with torch.no_grad():
        for row in rows:
            row |= {f"{side}_logps": scored_logps(asked, row, side).numpy() + shift for side in ("chosen", "rejected")}
    return epochs_of(rows, [8, 8, 8], 1)


def refusals(groups, folder, model, shift, stages, dtype, **options):
    """The refusal of a run on two ranks, for each stage of ZeRO."""
    epochs = steps_of(model, dtype, shift)
    jobs = [
        make_job(folder / str(stage), model, epochs, stage, dtype=dtype, micro_batch_tokens=BUDGET, **options)
        for stage in stages
    ]
    answers = groups.run(2, [Task(job, epochs, []) for job in jobs])
    assert all(of_ranks[0] == of_ranks[1] for of_ranks in answers)
    return [of_ranks[0] for of_ranks in answers]


def noise(said):
    """What the message says of a token and of a pair."""
    return tuple(map(float, NOISE.search(said).groups()))


def test_rounding_passes_where_no_limit_was_asked_for(groups, wide, tmp_path):
    """And only rounding does: a reference that is off by more than what other batches change is refused."""
    limits = {"guard_tolerance": 1e-6, "guard_allows_rounding": True}
    (passed,) = refusals(groups, tmp_path / "same", wide, 0.0, (2,), "bfloat16", **limits)
    assert not isinstance(passed, str)
    (said,) = refusals(groups, tmp_path / "moved", wide, 0.02, (2,), "bfloat16", **limits)
    assert "the cached reference that is of another function" in said


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (Noise(Gap(0.01, 0.1), 0.0), "it is the cached reference"),  # 10 times smaller than the gap
        (Noise(Gap(0.01, 0.1), 0.08), "acts at random"),
        (Noise(Gap(0.2, 0.1), 0.02), "depend on what is computed beside it"),
        (Noise(Gap(0.2, 0.1), 0.19), "acts at random"),
    ],
)
def test_only_a_cause_that_the_numbers_tell_is_named(noise, said):
    assert said in _cause(Gap(0.1, 1.0), noise, rounding=False, most=0.05)


def test_in_bfloat16_the_noise_of_a_layout_is_named_beside_the_gap(groups, wide, tmp_path):
    for said in refusals(groups, tmp_path, wide, 1.0, (1, 3), "bfloat16", guard_tolerance=0.05):
        assert "differ by 1 nats per token on average; the limit in bfloat16 is 0.05" in said
        token, pair = noise(said)
        assert 1e-5 < token < 0.1 and token < pair < 1
        assert "So the policy agrees with itself, and it is the cached reference that is of another function" in said


def test_in_float32_there_is_next_to_none(groups, wide, tmp_path):
    for said in refusals(groups, tmp_path, wide, 0.01, (2, 3), "float32"):
        token, pair = noise(said)
        assert token < 1e-5 and pair < 1e-4
        assert "So the policy agrees with itself, and it is the cached reference that is of another function" in said


def test_a_gap_that_is_rounding_names_the_limit_to_raise(groups, wide, tmp_path):
    (said,) = refusals(groups, tmp_path, wide, 0.0, (2,), "bfloat16", guard_tolerance=1e-6)
    assert "it is rounding" in said and "cached reference that is" not in said, said
    advised = float(re.search(r"raise it, for example to (\S+)\.$", said)[1])
    epochs = steps_of(wide, "bfloat16", 0.0)
    job = make_job(
        tmp_path / "again", wide, epochs, 2, dtype="bfloat16", micro_batch_tokens=BUDGET, guard_tolerance=advised
    )
    ((done, _),) = groups.run(2, [Task(job, epochs, [])])
    assert not isinstance(done, str) and Path(job.weights, "model.safetensors").exists()
