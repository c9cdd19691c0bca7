"""Jobs that stop in the middle and go on from a checkpoint, on real process groups with the real DeepSpeed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.store.artifacts import MANIFEST
from pipeline.worker.loop import Done, Job
from tests.pipeline.worker.group import Groups, Task
from tests.pipeline.worker.small_run import (
    curve,
    json_lines,
    make_job,
    saved,
    trained,
)

pytestmark = pytest.mark.group

STAGES = [1, 2, 3]
EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def stopped(groups, model, epochs, tmp_path_factory):
    """stage -> a whole job, and the same one stopped in its ninth step, with checkpoints after steps 3 and 6."""
    root = tmp_path_factory.mktemp("stopped")
    options = {"schedule": "linear", "warmup_steps": 2, "checkpoint_steps": 3, "audit": True, "evaluate_every": 2}
    jobs = {
        (name, stage): make_job(root / f"{name}-{stage}", model, epochs, stage, **options)
        for name in ("whole", "stopped")
        for stage in STAGES
    }
    tasks = [
        Task(job, epochs, epochs[0][:1], stop_at=8 if name == "stopped" else None) for (name, _), job in jobs.items()
    ]
    answers = dict(zip(jobs, groups.run(2, tasks), strict=True))
    for stage in STAGES:
        assert all(isinstance(answer, Done) for answer in answers["whole", stage])
        assert answers["stopped", stage] == ["stopped"] * 2
        assert [path.name for path in saved(jobs["stopped", stage])] == ["001-00000003", "001-00000006"]
    return {stage: (jobs["whole", stage], jobs["stopped", stage]) for stage in STAGES}


@EACH_STAGE
def test_a_resumed_job_ends_as_if_it_had_never_stopped(groups, stage, stopped, epochs, tmp_path):
    whole, job = stopped[stage]
    again = copy(job, tmp_path / "job")
    go_on(groups, again, epochs, afresh=True)  # so that nothing but the checkpoint is there to go on from
    check_as_if_never_stopped(again, whole, from_step=6)
    lines = json_lines(Path(again.logs) / "audit.jsonl")
    for epoch in range(2):  # of a step that two attempts took, the last one counts
        attempts = {line["step"]: line["attempt"] for line in lines if line["epoch"] == epoch}
        lasting = [line["row_ids"] for line in lines if attempts.get(line["step"]) == line["attempt"]]
        assert sorted(i for row_ids in lasting for i in row_ids) == list(range(20))
    assert {line["step"] for line in lines if line["attempt"] == 2} == {7, 8, 9, 10}
    assert [path.name for path in saved(again)] == ["002-00000009", "002-00000010"]


@EACH_STAGE
def test_a_damaged_checkpoint_is_passed_over(groups, stage, stopped, epochs, tmp_path):
    whole, job = stopped[stage]
    again = copy(job, tmp_path / "job")
    largest = max((p for p in saved(again)[-1].rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    go_on(groups, again, epochs)
    check_as_if_never_stopped(again, whole, from_step=3)


@EACH_STAGE
def test_a_checkpoint_without_a_manifest_is_none(groups, stage, stopped, epochs, tmp_path):
    whole, job = stopped[stage]
    again = copy(job, tmp_path / "job")
    (saved(again)[-1] / MANIFEST).unlink()
    go_on(groups, again, epochs)
    check_as_if_never_stopped(again, whole, from_step=3)


def test_checkpoints_of_another_job_are_not_taken_up_and_make_room(groups, stopped, epochs, tmp_path):
    _, job = stopped[1]
    other = replace(copy(job, tmp_path / "job"), fingerprint="another")
    go_on(groups, other, epochs)
    assert json_lines(Path(other.checkpoints) / "attempts.jsonl")[-1]["from_step"] == 0
    assert {path.name[:3] for path in saved(other)} == {"002"}


def test_a_finished_job_takes_no_further_step(groups, stopped, epochs, tmp_path):
    whole, _ = stopped[3]
    again = copy(whole, tmp_path / "job")
    (Path(again.weights) / "model.safetensors").unlink()
    groups.run(2, [Task(again, epochs, [], stop_at=0)])
    check_as_if_never_stopped(again, whole, from_step=10)


@EACH_STAGE
def test_other_numbers_of_workers_go_on(groups, stage, stopped, epochs, tmp_path):
    """Six steps on 2 ranks, three on 1, the last again on 2: the curve of a run that never stopped, each row once."""
    whole, job = stopped[stage]
    again = copy(job, tmp_path / "job")
    assert groups.run(1, [Task(again, epochs, epochs[0][:1], stop_at=9)]) == [["stopped"]]
    go_on(groups, again, epochs)
    attempts = json_lines(Path(again.checkpoints) / "attempts.jsonl")
    assert [attempt["from_step"] for attempt in attempts] == [0, 6, 9]
    assert curve(again) == pytest.approx(curve(whole), abs=1e-4)
    assert min(curve(whole)) < 0.55  # at a rate that learns
    ours, theirs = trained(again), trained(whole)
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).norm() <= 1e-3 * tensor.norm(), name
    lines = json_lines(Path(again.logs) / "audit.jsonl")
    last = {line["step"]: line["attempt"] for line in lines}
    for epoch in range(2):
        lasting = [i for x in lines if x["epoch"] == epoch and x["attempt"] == last[x["step"]] for i in x["row_ids"]]
        assert sorted(lasting) == list(range(20))
    assert not list(Path(again.checkpoints).glob("*.universal"))


@EACH_STAGE
def test_a_checkpoint_that_cannot_be_converted_says_so(groups, stage, stopped, epochs, tmp_path):
    """No room beside it, say: here a file stands where the folder should."""
    again = copy(stopped[stage][1], tmp_path / "job")
    (saved(again)[-1].parent / f"{saved(again)[-1].name}.universal").touch()
    ((answer,),) = groups.run(1, [Task(again, epochs, [])])
    assert "could not be converted for another number of workers" in str(answer)
    assert len(saved(again)) == 2


def test_a_node_that_is_announced_to_go_has_one_more_checkpoint_written(groups, stopped, model, epochs, tmp_path):
    job = make_job(tmp_path / "job", model, epochs, 1, schedule="linear", warmup_steps=2)
    tasks = [Task(job, epochs, [], stop_at=7, announced_at=4)]
    assert groups.run(2, tasks) == [["stopped"] * 2]
    assert [path.name for path in saved(job)] == ["001-00000005"]
    go_on(groups, job, epochs)
    assert [attempt["from_step"] for attempt in json_lines(Path(job.checkpoints) / "attempts.jsonl")] == [0, 5]
    ours, theirs = trained(job), trained(stopped[1][0])
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def copy(job: Job, folder: Path) -> Job:
    """The job with a copy of all that it has written."""
    shutil.copytree(Path(job.logs).parent, folder)
    return replace(job, **{name: str(folder / name) for name in ("weights", "logs", "checkpoints")})


def go_on(groups: Groups, job: Job, epochs: list, afresh: bool = False) -> None:
    """Run the job to its end; `afresh`: in new processes."""
    run = groups.run_afresh if afresh else groups.run
    answers = run(2, [Task(job, epochs, epochs[0][:1])])
    assert all(isinstance(answer, Done) for answer in answers[0]), answers


def check_as_if_never_stopped(job: Job, whole: Job, from_step: int) -> None:
    attempts = json_lines(Path(job.checkpoints) / "attempts.jsonl")
    assert [attempt["from_step"] for attempt in attempts] == [0, from_step]
    rows, expected = (json_lines(Path(j.logs) / "metrics.jsonl") for j in (job, whole))
    timeless = [[{k: v for k, v in row.items() if not k.startswith("perf/")} for row in r] for r in (rows, expected)]
    assert timeless[0] == timeless[1]
    assert len(curve(job)) == 10  # which also checks that each step is there once
    ours, theirs = trained(job), trained(whole)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)  # bit for bit
