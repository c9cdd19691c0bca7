"""Jobs that write the weights of their best evaluation, on real process groups with the real DeepSpeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.worker.loop import Done, Job
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import (
    json_lines,
    make_job,
    saved,
    trained,
)

pytestmark = pytest.mark.group

STAGES = [1, 2, 3]
EACH_STAGE = pytest.mark.parametrize("stage", STAGES)
RATE = 2e-2  # at which the loss of these held-out pairs is lowest after step 6
OPTIONS = {"evaluate_every": 2, "keep_checkpoints": 1, "learning_rate": RATE}


@pytest.fixture(scope="module")
def whole(groups, model, epochs, held_out, tmp_path_factory):
    """stage -> a job that keeps its best weights and what it answered, after ten steps on two ranks."""
    root = tmp_path_factory.mktemp("whole")
    jobs = {stage: make_job(root / str(stage), model, epochs, stage, best_by="loss", **OPTIONS) for stage in STAGES}
    answers = groups.run(2, [Task(job, epochs, held_out) for job in jobs.values()])
    return dict(zip(STAGES, zip(jobs.values(), answers, strict=True), strict=True))


@EACH_STAGE
def test_the_weights_are_those_of_the_best_evaluation(groups, stage, whole, model, epochs, tmp_path):
    job, answers = whole[stage]
    losses = evaluations(job, "loss")
    assert list(losses) == [2, 4, 6, 8, 10]
    best = min(losses, key=losses.__getitem__)
    assert 2 < best < 10, losses
    for answer in answers:
        assert isinstance(answer, Done)
        assert (answer.steps, answer.weights_step) == (10, best)
        assert answer.best == (losses[best], best, f"001-{best:08}")
    assert [path.name for path in saved(job)] == [f"001-{best:08}", "001-00000010"]
    steps = [table for epoch in epochs for table in epoch][:best]
    shorter = make_job(tmp_path / "shorter", model, [steps], stage, learning_rate=RATE)
    groups.run(2, [Task(shorter, [steps], [])])
    assert same(job, shorter)


@EACH_STAGE
def test_it_is_known_after_a_stop_and_on_another_number_of_workers(
    groups, stage, whole, model, epochs, held_out, tmp_path
):
    expected = whole[stage][1][0]
    job = make_job(tmp_path / "job", model, epochs, stage, best_by="loss", checkpoint_steps=3, **OPTIONS)
    assert groups.run(2, [Task(job, epochs, held_out, stop_at=9)]) == [["stopped"] * 2]
    ((answer,),) = groups.run(1, [Task(job, epochs, held_out)])
    assert json_lines(Path(job.checkpoints) / "attempts.jsonl")[-1]["from_step"] == 9
    assert answer.weights_step == expected.weights_step
    assert answer.best[:2] == expected.best[:2]
    assert same(job, whole[stage][0])
    assert not list(Path(job.checkpoints).glob("*.universal"))


def test_a_damaged_best_leaves_the_last_weights(groups, whole, model, epochs, held_out, tmp_path):
    expected = whole[2][1][0]
    job = make_job(tmp_path / "job", model, epochs, 2, best_by="loss", **OPTIONS)
    groups.run(2, [Task(job, epochs, held_out)])
    best, last = saved(job)
    largest = max((p for p in best.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    (Path(job.weights) / "model.safetensors").unlink()
    plain = make_job(tmp_path / "plain", model, epochs, 2, learning_rate=RATE)
    (answers, _) = groups.run(2, [Task(job, epochs, held_out), Task(plain, epochs, [])])
    assert [(answer.weights_step, answer.best.step) for answer in answers] == [(10, expected.best.step)] * 2
    assert same(job, plain)
    assert last in saved(job)


def test_accuracy_is_better_when_it_is_higher(groups, model, epochs, held_out, tmp_path):
    job = make_job(tmp_path / "job", model, epochs, 0, best_by="accuracy", **OPTIONS)
    ((answer,),) = groups.run(1, [Task(job, epochs, held_out)])
    found = evaluations(job, "rewards/accuracies")
    highest = max(found.values())
    assert min(found.values()) < highest
    assert answer.best[:2] == (highest, next(step for step, value in found.items() if value == highest))


def test_without_it_the_last_weights_are_written(groups, model, epochs, held_out, tmp_path):
    job = make_job(tmp_path / "job", model, epochs, 0, **OPTIONS)
    ((answer,),) = groups.run(1, [Task(replace(job, best_by=None), epochs, held_out)])
    assert (answer.weights_step, answer.best) == (10, None)
    assert list(evaluations(job, "loss")) == [2, 4, 6, 8]


def evaluations(job: Job, metric: str) -> dict[int, float]:
    """Step -> value."""
    rows = json_lines(Path(job.logs) / "metrics.jsonl")
    return {row["step"]: row[f"eval/{metric}"] for row in rows if f"eval/{metric}" in row}


def same(one: Job, other: Job) -> bool:
    """Bit for bit."""
    ours, theirs = trained(one), trained(other)
    assert ours.keys() == theirs.keys()
    return all(ours[name].equal(theirs[name]) for name in ours)
