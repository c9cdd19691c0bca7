"""Twelve kinds of models: at next to no learning rate the policy stays the reference, so every loss is ln 2."""

import math

import pytest

from pipeline.stages.train import GUARD_TOLERANCE
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.kinds import KINDS, SWITCH, kind_folder, mixed_rows, scored
from tests.pipeline.worker.small_run import curve, make_job, tables

pytestmark = pytest.mark.group
SHARED = {"llama", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_neox", "olmoe"}


def losses_of(groups, folder, kind, dtype, stage=2):
    """The loss of each step of a run; its reference was scored as the pool scores, in batches of another size."""
    model = kind_folder(folder / "model", kind)
    rows, scorer = scored(model, mixed_rows(), dtype)
    assert scorer.model.way.shared == (kind in SHARED), scorer.unshared
    epochs, limit = [tables(rows, [8, 8, 8])], GUARD_TOLERANCE[dtype]
    job = make_job(
        folder / "job", model, epochs, stage, learning_rate=1e-12, dtype=dtype, guard_tolerance=limit,
        micro_batch_tokens=150,
    )  # fmt: skip
    (((done,),)) = groups.run(1, [Task(job, epochs, [])])
    assert not isinstance(done, str), done
    assert (done.unshared is None) == (kind in SHARED)
    return curve(job)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_ln_2(groups, tmp_path, kind):
    for loss in losses_of(groups, tmp_path, kind, "float32"):
        assert abs(loss - math.log(2)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_nearly_ln_2_in_bfloat16(groups, tmp_path, kind):
    for loss in losses_of(groups, tmp_path, kind, "bfloat16"):
        assert abs(loss - math.log(2)) < 1e-3


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt_oss", "bloom"])  # whose layers have biases
def test_in_bfloat16_stage_3_computes_as_the_scorer_does(groups, tmp_path, kind):
    for loss in losses_of(groups, tmp_path, kind, "bfloat16", stage=3):
        assert abs(loss - math.log(2)) < 1e-3


def test_the_pairs_lie_on_both_sides_of_the_switch():
    lengths = [
        [len(row["prompt_ids"]) + len(row[f"{side}_ids"]) > SWITCH for side in ("chosen", "rejected")]
        for row in mixed_rows()
    ]
    assert {tuple(pair) for pair in lengths} == {(True, True), (True, False), (False, False)}
