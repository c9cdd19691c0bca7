"""Part 7: a training that is killed goes on where its last checkpoint left off, and saving hardly blocks it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dpo.terms import Term
from examples.benchmarks.gpu.jobs import apart, join, make_job, run_job
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import BUDGET
from pipeline.errors import RunError
from pipeline.process import Process
from pipeline.store.artifacts import MANIFEST
from pipeline.worker.job import Job
from pipeline.worker.rank import BRIEF_SECONDS

BLOCKED = 1.0  # seconds for the copy of weights and optimizer, at most
EQUAL, SIMILAR = 1e-3, 2e-2  # of the losses: relative, on as many ranks and on others
BY_LENGTH = (Term("sigmoid_norm", {"beta": 0.1}),)  # else the made-up reference would leave no gradient


def measure(setting: Setting) -> Report:
    """Train once without a stop, and once with a stop on as many ranks, and where there are two, on half of them."""
    name = next(iter(setting.models))
    whole = _afresh(setting, "whole", lambda: apart(setting, go_on, name, "whole"))
    rows = [
        Row(
            f"{name}: saving blocks training",
            whole["blocked"],
            "s",
            BLOCKED + BRIEF_SECONDS,  # it waits so long for the files of a small one
            True,
            "the speed of copies from the card (part 0), and free memory of the host",
        )
    ]
    details: dict[str, Any] = {"whole": whole}
    for world in (2,) if setting.tiny else (1, 2) if torch.cuda.device_count() > 1 else (1,):
        what = "on as many ranks" if world == 1 else "on half the ranks"
        found = details[what] = _afresh(setting, what, partial(_killed_and_resumed, setting, name, what, world))
        pairs = zip(found["losses"], whole["losses"], strict=True)
        apart_by = max(abs(one - other) / abs(other) for one, other in pairs)
        look = "pipeline/worker/checkpoints.py, and train.deterministic = true"
        rows += [
            Row(f"{name}: {what}, went on from step", found["from"], "", 1, look="checkpoints below --work"),
            Row(f"{name}: {what}, losses differ", apart_by, "relative", EQUAL if world == 1 else SIMILAR, True, look),
        ]
    return Report(rows, details)


def _afresh(setting: Setting, what: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work of a run with no checkpoints of an earlier one, and leave none."""
    folder = setting.work / f"resume-{what}"
    shutil.rmtree(folder, ignore_errors=True)
    found = work()
    shutil.rmtree(folder)
    return found


def _killed_and_resumed(setting: Setting, name: str, what: str, world: int) -> dict[str, Any]:
    """Train on some ranks until the first checkpoint is committed, when all of them are killed; then go on, on one."""
    ranks = [Process(until_saved, setting, name, what, rank, world) for rank in range(world)]
    for rank in ranks:
        try:
            rank.result()
        except RunError:
            continue  # killed
        raise RuntimeError(f"the run {what} ended before it was killed: no checkpoint was committed in time")
    return apart(setting, go_on, name, what)


def until_saved(setting: Setting, name: str, what: str, rank: int, world: int) -> None:
    """Run as one rank in a process of its own, which ends itself."""
    job, steps = _job(setting, name, what)
    setting = join(setting, Path(job.logs) / "ranks", rank, world)

    def at_step(step: int) -> None:
        committed = torch.tensor(int(any(Path(job.checkpoints).glob(f"*/{MANIFEST}"))))
        # Agreed upon: a rank that saw it late would wait for those that have gone.
        dist.all_reduce(committed, dist.ReduceOp.MIN)
        if committed and step > len(steps) // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    run_job(setting, job, steps, at_step)


def go_on(setting: Setting, name: str, what: str) -> dict[str, Any]:
    """Run in a process of its own, on one rank: from the last checkpoint, if there is one, to the end."""
    job, steps = _job(setting, name, what)
    setting = join(setting, setting.work / "resume-rank")
    times: dict[int, float] = {}

    def at_step(step: int) -> None:
        times[step] = time.monotonic()

    rows = run_job(setting, job, steps, at_step)
    saved = len(steps) // 2 - 1  # the step behind which the first checkpoint is
    attempts = (Path(job.checkpoints) / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
    blocked = None
    if saved in times:
        blocked = times[saved + 1] - times[saved] - rows[saved]["perf/step_seconds"]
    return {
        "losses": [row["loss"] for row in rows],
        "from": json.loads(attempts[-1])["from_step"],
        "blocked": blocked,
    }


def _job(setting: Setting, name: str, what: str) -> tuple[Job, list[Any]]:
    pairs, count, budget = (4, 6, 64) if setting.tiny else (128, setting.fewer(40), BUDGET)
    steps = [setting.pairs(name, pairs, seed=100 + number) for number in range(count)]
    changes: dict[str, Any] = {"checkpoint_steps": count // 2, "mixture": BY_LENGTH, "learning_rate": 1e-4}
    return make_job(setting.work / f"resume-{what}", setting.folder(name), steps, 1, budget, **changes), steps
