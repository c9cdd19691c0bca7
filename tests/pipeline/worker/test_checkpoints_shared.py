"""Which checkpoint several ranks go on from: rank 0 chooses it for all, and each digests a share of its files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from dpo.lm import whole_folder
from dpo.lm.whole_folder import read_json
from pipeline.store.artifacts import MANIFEST
from pipeline.worker.job import Best
from pipeline.worker.loop import Job
from pipeline.worker.rank import open_rank, take_best
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import make_job, saved

pytestmark = pytest.mark.group


class Opened(NamedTuple):
    """What one rank did to go on, and to go back to its best."""

    start: int
    steps: int  # of the engine
    digested: list[Path]
    weights_step: int
    digested_for_best: list[Path]


@pytest.fixture(scope="module")
def stopped(groups, model, epochs, tmp_path_factory):
    """A job of two ranks with checkpoints after steps 3 and 6."""
    job = make_job(tmp_path_factory.mktemp("stopped") / "job", model, epochs, 2, checkpoint_steps=3)
    assert groups.run(2, [Task(job, epochs, [], stop_at=7)]) == [["stopped"] * 2]
    return job


def opened(jobs: list[Job], best: Best | None = None) -> Opened:
    """Go on with the job that this rank is shown, then back to the best."""
    digested: list[Path] = []
    real = whole_folder.file_digest
    whole_folder.file_digest = lambda path: digested.append(path) or real(path)
    try:
        me, start = open_rank(jobs[dist.get_rank()], torch.device("cpu"), lambda: False)
        to_open, steps = list(digested), me.engine.engine.global_steps
        digested.clear()
        me.best = best
        step = take_best(me, start)
        me.engine.close()
    finally:
        whole_folder.file_digest = real
    return Opened(start, steps, to_open, step, digested)


def copy(job: Job, folder: Path) -> Job:
    shutil.copytree(job.checkpoints, folder)
    return replace(job, checkpoints=str(folder))


@pytest.mark.parametrize(("late", "step"), [(0, 3), (1, 6)])
def test_ranks_that_see_different_folders_start_from_the_checkpoint_of_rank_0(groups, stopped, tmp_path, late, step):
    """One rank does not see the newest checkpoint yet."""
    seen = [copy(stopped, tmp_path / name) for name in ("first", "second")]
    shutil.rmtree(saved(seen[late])[-1])
    answers = groups.call(2, opened, seen)
    assert [(answer.start, answer.steps) for answer in answers] == [(step, step)] * 2


def test_every_file_is_digested_once_over_all_ranks(groups, stopped, tmp_path):
    job = copy(stopped, tmp_path / "job")
    first, newest = saved(job)
    answers = groups.call(2, opened, [job, job], Best(0.1, 3, first.name))
    assert [(answer.start, answer.weights_step) for answer in answers] == [(6, 3)] * 2
    assert sorted(path for answer in answers for path in answer.digested) == files_of(newest)
    assert sorted(path for answer in answers for path in answer.digested_for_best) == files_of(first)
    sizes = [sum(path.stat().st_size for path in answer.digested) for answer in answers]
    assert sum(sizes) == sum(entry["bytes"] for entry in read_json(newest / MANIFEST)["files"].values())
    assert min(sizes) > sum(sizes) / 5


@pytest.mark.parametrize("which", [0, -1])
def test_damage_that_one_rank_finds_counts_for_all(groups, stopped, tmp_path, which):
    job = copy(stopped, tmp_path / "job")
    damaged = sorted(files_of(saved(job)[-1]), key=lambda path: path.stat().st_size)[which]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    answers = groups.call(2, opened, [job, job], Best(0.1, 6, saved(job)[-1].name))
    assert [(answer.start, answer.weights_step) for answer in answers] == [(3, 3)] * 2


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
