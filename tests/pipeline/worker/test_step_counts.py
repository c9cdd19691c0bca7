"""Adam's count of steps where a job goes on from a checkpoint: each state has its own, and it is the checkpoint's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dpo.lm.sequences import TokenSequence
from pipeline.errors import RunError
from pipeline.worker.checkpoints import own_counts
from pipeline.worker.loop import Done, Job
from pipeline.worker.rank import open_rank
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import cached, curve, epochs_of, make_job, make_rows, saved

STAGES = [1, 2, 3]
SUB_GROUP_SIZE = 4000  # parameters: under ZeRO-3 the small model has five sub-groups on one rank


class Counts(NamedTuple):
    """Adam's counts on one rank."""

    loaded: list[float]
    stepped: list[float]  # after one more step
    tensors: int  # different ones among the loaded counts


@pytest.fixture(scope="module")
def epochs(model):
    """Two epochs of six steps of two pairs."""
    return epochs_of(cached(model, make_rows(12, 0)), [2] * 6, 2)


def job_in(folder: Path, model: Path, epochs: list, stage: int) -> Job:
    job = make_job(folder, model, epochs, stage, checkpoint_steps=3, keep_checkpoints=1)
    zero = {**job.deepspeed["zero_optimization"], "sub_group_size": SUB_GROUP_SIZE}
    return replace(job, deepspeed={**job.deepspeed, "zero_optimization": zero})


@pytest.fixture(scope="module")
def whole(groups, model, epochs, tmp_path_factory):
    """stage -> the losses of 12 steps without a stop."""
    root = tmp_path_factory.mktemp("whole")
    jobs = {stage: job_in(root / str(stage), model, epochs, stage) for stage in STAGES}
    answers = groups.run(2, [Task(job, epochs, []) for job in jobs.values()])
    assert all(isinstance(answer, Done) for of_job in answers for answer in of_job), answers
    return {stage: curve(job) for stage, job in jobs.items()}


@pytest.mark.group
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_counts_go_on_where_the_checkpoint_was(groups, model, epochs, whole, stage, before, after, tmp_path):
    job = job_in(tmp_path / "job", model, epochs, stage)
    assert groups.run(before, [Task(job, epochs, [], stop_at=3)]) == [["stopped"] * before]
    assert [path.name for path in saved(job)] == ["001-00000003"]
    shutil.copytree(job.checkpoints, tmp_path / "copy")
    found = groups.call(after, counted, replace(job, checkpoints=str(tmp_path / "copy")))
    for counts in found:
        assert {*counts.loaded} == {3} and {*counts.stepped} == {4}
        assert counts.tensors == len(counts.loaded) == len(counts.stepped)
    if stage == 3:
        assert len(found[0].loaded) == (5 if after == 1 else 3)
    (answers,) = groups.run(after, [Task(job, epochs, [])])
    assert all(isinstance(answer, Done) for answer in answers), answers
    assert curve(job) == pytest.approx(whole[stage], abs=1e-4)


def counted(job: Job) -> Counts:
    """The counts of one rank that goes on from the job's checkpoint."""
    me, start = open_rank(job, torch.device("cpu"), lambda: False)
    assert start == 3
    states = me.engine.engine.basic_optimizer.state
    loaded = [float(state["step"]) for state in states.values()]
    tensors = len({state["step"].data_ptr() for state in states.values()})
    batch = me.engine.collate([TokenSequence([1, 2], [side, 3], [True, True]) for side in (4, 5)], 1)
    me.engine.backward(-me.engine.logps(batch, False).logps.sum(), last=True)
    me.engine.step(1e-3)
    stepped = [float(state["step"]) for state in states.values()]
    me.engine.close()
    return Counts(loaded, stepped, tensors)


def test_each_state_gets_a_count_of_its_own_on_the_device_of_its_parameter():
    shared = torch.tensor(3.0, dtype=torch.float64)
    parameters = [torch.nn.Parameter(torch.empty(2, device=device)) for device in ("meta", "cpu", "cpu")]
    states = {parameter: {"step": shared} for parameter in parameters}
    own_counts(states, 3)
    counts = [state["step"] for state in states.values()]
    assert [count.device.type for count in counts] == ["meta", "cpu", "cpu"]
    assert {count.dtype for count in counts} == {torch.float32}
    assert [float(count) for count in counts[1:]] == [3, 3]
    counts[1] += 1
    assert (float(counts[2]), float(shared)) == (3, 3)


def test_a_count_that_is_not_the_checkpoints_is_refused():
    states = {torch.nn.Parameter(torch.empty(2)): {"step": torch.tensor(count)} for count in (4.0, 8.0)}
    with pytest.raises(RunError, match="counted 8 steps in a checkpoint of 4"):
        own_counts(states, 4)
