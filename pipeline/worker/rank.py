"""One rank of the group: taken up where the last checkpoint left off, saved from time to time, written at the end."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dpo.lm.weights import write_weights
from dpo.step import Baseline
from pipeline.errors import Diverged, InputError, RunError
from pipeline.store import run_files
from pipeline.store.lease import is_held
from pipeline.store.logs import read_steps
from pipeline.store.memory import peak_bytes
from pipeline.worker import checkpoints
from pipeline.worker.conversion import for_any_world_size
from pipeline.worker.engine import Engine
from pipeline.worker.job import Best, Job
from pipeline.worker.logs import MetricLog, append_line, cut_back
from pipeline.worker.meter import Meter
from pipeline.worker.objectives import Objective, objective_of
from pipeline.worker.saving import Saving
from pipeline.worker.trusted import keep_to_myself, refuse_foreign

PREEMPTION_SECONDS = 5  # between two looks whether a node is about to be taken away
BRIEF_SECONDS = 1.0  # that training waits for a checkpoint's files: a small one is committed before the next step
MEETING_SECONDS = 5.0  # between two meetings of ranks that wait for a large one; far below the limit of a collective


@dataclass
class Rank:
    """This process within the group, and what it holds."""

    job: Job
    engine: Engine
    log: MetricLog | None  # rank 0
    rank: int
    world_size: int
    attempt: int
    preempted: Callable[[], bool]  # a node is about to be taken away; called by all ranks at the same point
    baseline: Baseline  # of bco_pair; part of the training state
    best: Best | None
    saving: tuple[Saving, dict[str, Any]] | None = None  # a checkpoint that is being written, and its counts
    saved_at: float = field(default_factory=time.monotonic)
    asked_at: float = field(default_factory=time.monotonic)  # whether a node is being taken away
    warned: bool = False
    stopping: bool = False  # the workers are asked to end, once what they have is saved
    meter: Meter | None = None  # None: the card is unknown
    skipped: int = 0  # updates left out one after another, because a gradient was not finite
    names: dict[str, list[str]] = field(default_factory=dict)  # of the metrics, in training and in evaluation
    loss_first: float | None = None  # of the first step whose loss was finite
    loss_last: float | None = None
    compared: str | None = None  # what the guard compared, where the reference is not the start

    @property
    def objective(self) -> Objective:
        return objective_of(self.job)

    @property
    def device(self) -> torch.device:
        return self.engine.device


def open_rank(job: Job, device: torch.device, preempted: Callable[[], bool]) -> tuple[Rank, int]:
    """This rank where the last checkpoint left off, or at the start; and the steps that were done before."""
    keep_to_myself()
    refuse_foreign(Path(job.checkpoints))
    found = checkpoints.latest(Path(job.checkpoints), job.fingerprint)
    engine = Engine(job, device) if found is None else _engine_at(job, device, *found)
    counts: dict[str, Any] = found[1] if found is not None else {}
    start, baseline = counts.get("step", 0), Baseline(*counts.get("baseline", Baseline()))
    best = Best(*counts["best"]) if counts.get("best") else None
    rank = dist.get_rank()
    log, attempt = None, [0]
    if rank == 0:
        folder = Path(job.checkpoints)
        attempt = [checkpoints.begin_attempt(folder, job.fingerprint)]
        if start == 0:
            (Path(job.logs) / run_files.AUDIT).unlink(missing_ok=True)  # of steps that no longer count
        cut_back(Path(job.logs) / run_files.SAMPLES, start)
        append_line(folder / run_files.ATTEMPTS, {"time": time.time(), "from_step": start})
        log = MetricLog(Path(job.logs), job.tensorboard, start)
    dist.broadcast_object_list(attempt)
    me = Rank(job, engine, log, rank, dist.get_world_size(), attempt[0], preempted, baseline, best)
    me.loss_first, me.loss_last = _losses(counts, Path(job.logs) / run_files.METRICS)
    return me, start


def _losses(counts: dict[str, Any], log: Path) -> tuple[float | None, float | None]:
    """The first and the last finite loss before a checkpoint; one of an older version leaves it to the log."""
    if "loss_first" in counts:
        return counts["loss_first"], counts["loss_last"]
    found = [row["loss"] for row in read_steps(log)[0] if row.get("loss") is not None]
    return (found[0], found[-1]) if found else (None, None)


def _engine_at(job: Job, device: torch.device, path: Path, counts: dict[str, Any]) -> Engine:
    """An engine where a checkpoint left off, whatever number of workers wrote it."""
    sharded = job.deepspeed["zero_optimization"]["stage"] > 0
    convert = sharded and counts["world_size"] != dist.get_world_size()
    if convert:
        path = for_any_world_size(path, Path(job.logs) / run_files.STATUS)
    engine = Engine(job, device, universal=convert)
    engine.load(path)
    if convert:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(path)
    return engine


def checkpoint_if_due(me: Rank, step: int, evaluated: float | None) -> None:
    """Save after the last step, by steps, by minutes, and once more when a node is about to be taken away.

    Also where an evaluation gave the best value yet. Training waits for the copy of the shards alone, and commits the
    checkpoint once all ranks have written theirs; it waits for the writing after the last step, before a node goes,
    and before the next checkpoint.
    """
    name = checkpoints.name_of(me.attempt, step)
    due = _is_due(me, step)
    if evaluated is not None and _better(evaluated, me):
        me.best, due = Best(evaluated, step, name), True
    if not due:
        _commit_if_written(me, 0)
        return
    refuse_not_finite(me, step)
    _refuse_taken_over(me)
    _finish_saving(me)
    counts = {
        "step": step,
        "attempt": me.attempt,
        "world_size": me.world_size,
        "baseline": list(me.baseline),
        "best": me.best,
        "loss_first": me.loss_first,
        "loss_last": me.loss_last,
    }
    if me.job.base[0]:
        counts["base"] = me.job.base[0]  # whose weights are not in the checkpoint
    me.saving = me.engine.save(Path(me.job.checkpoints) / name), counts
    me.saved_at = time.monotonic()
    if step == me.job.steps or me.warned or me.stopping:
        _finish_saving(me)
    _commit_if_written(me, BRIEF_SECONDS)


def _is_due(me: Rank, step: int) -> bool:
    """Whether it is time to save. Rank 0's clock decides for all, so that no rank saves alone."""
    job, now = me.job, time.monotonic()
    decided = [
        step == job.steps
        or (job.checkpoint_steps is not None and step % job.checkpoint_steps == 0)
        or now - me.saved_at > 60 * job.checkpoint_minutes,
        now - me.asked_at > PREEMPTION_SECONDS,
        Path(job.stop).exists(),
    ]
    dist.broadcast_object_list(decided)
    due, ask, me.stopping = decided
    if ask:
        me.asked_at = now
        warned = me.preempted()
        due, me.warned = due or (warned and not me.warned), warned
    return due or me.stopping


def _commit_if_written(me: Rank, seconds: float) -> None:
    """Commit the checkpoint under way if all ranks have written their files. A rank waits at most so long for its own.

    Raises:
        RunError: a rank could not write its files. Raised on every rank.
    """
    if me.saving is None:
        return
    saving, counts = me.saving
    problems: list[str | None] = [None] * me.world_size
    dist.all_gather_object(problems, saving.problem(seconds))
    for problem in filter(None, problems):
        raise RunError(problem)
    if None in problems:
        return
    checkpoints.commit(saving.folder, me.job.fingerprint, counts, saving.files)
    if me.rank == 0:
        folder, name = saving.folder.parent, saving.folder.name
        checkpoints.keep_last(folder, me.job.fingerprint, me.job.keep_checkpoints, name)
    me.saving = None


def _finish_saving(me: Rank) -> None:
    """Wait until the checkpoint under way is committed; the ranks keep meeting, however long it takes."""
    while me.saving is not None:
        _commit_if_written(me, MEETING_SECONDS)


def refuse_not_finite(me: Rank, step: int) -> None:
    """Raise a Diverged on all ranks where a weight is infinite or NaN, so that such weights are never saved."""
    if not me.engine.all_finite():
        raise Diverged(
            f"After step {step:,} some weights are infinite or NaN, so they were not saved. Lower the learning rate, "
            "or look at the rows of the last steps (run.audit = true writes their ids)."
        )


def _refuse_taken_over(me: Rank) -> None:
    """Raise an InputError on all ranks where another command owns the run by now, so that only one saves."""
    taken = [me.job.lease is not None and me.rank == 0 and not is_held(Path(me.job.lease[0]), me.job.lease[1])]
    dist.broadcast_object_list(taken)
    if taken[0]:
        raise InputError("Another command has taken over this run, so these workers stop. Nothing is lost.")


def _better(value: float, me: Rank) -> bool:
    if math.isnan(value):
        return False
    return me.best is None or (value < me.best.value if me.job.best_by == "loss" else value > me.best.value)


def take_best(me: Rank, step: int) -> int:
    """Go back to the checkpoint of the best evaluation, if there is one; returns the step of the weights.

    A checkpoint that was damaged since leaves the weights as they are.
    """
    if me.best is None or me.best.step == step:
        return step
    found = checkpoints.best_of(Path(me.job.checkpoints), me.best)
    if found is None:
        return step
    path, counts = found
    device = me.device
    me.engine.close()
    del me.engine  # its memory goes before the next one takes as much
    gc.collect()
    me.engine = _engine_at(me.job, device, path, counts)
    me.baseline = Baseline(*counts["baseline"])
    return counts["step"]


def write_whole_weights(me: Rank) -> None:
    """All ranks gather, rank 0 writes."""
    tensors, adapted = me.engine.whole_tensors(), me.engine.adapted
    if me.rank == 0 and adapted is not None:
        adapted.write(Path(me.job.weights), tensors, me.job.base[1])
    elif me.rank == 0:
        write_weights(Path(me.job.weights), me.engine.on_disk(tensors))
    else:
        for _ in tensors:
            pass
    dist.barrier()


def group_peak_bytes(device: torch.device) -> int:
    """The largest resident memory that any rank has had, in bytes."""
    peak = torch.tensor([peak_bytes()], device=device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)
