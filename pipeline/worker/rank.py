"""One rank of the group: taken up where the last checkpoint left off, saved from time to time, written at the end."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from dpo.models.weights import write_weights
from dpo.step import Baseline
from pipeline.worker import checkpoints
from pipeline.worker.engine import Engine
from pipeline.worker.job import Job
from pipeline.worker.logs import MetricLog, append_line

PREEMPTION_SECONDS = 5  # between two looks whether a node is about to be taken away


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
    saved_at: float = field(default_factory=time.monotonic)
    asked_at: float = field(default_factory=time.monotonic)  # whether a node is being taken away
    warned: bool = False

    @property
    def device(self) -> torch.device:
        return self.engine.device


def open_rank(job: Job, device: torch.device, preempted: Callable[[], bool]) -> tuple[Rank, int]:
    """This rank where the last checkpoint left off, or at the start; and the steps that were done before."""
    engine, start, baseline = _restore(job, device)
    rank = dist.get_rank()
    log, attempt = None, [0]
    if rank == 0:
        folder = Path(job.checkpoints)
        folder.mkdir(parents=True, exist_ok=True)
        if start == 0:
            (Path(job.logs) / "audit.jsonl").unlink(missing_ok=True)  # of steps that no longer count
        append_line(folder / "attempts.jsonl", {"time": time.time(), "from_step": start})
        attempt = [len((folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines())]
        log = MetricLog(Path(job.logs), job.tensorboard, start)
    dist.broadcast_object_list(attempt)
    return Rank(job, engine, log, rank, dist.get_world_size(), attempt[0], preempted, baseline), start


def _restore(job: Job, device: torch.device) -> tuple[Engine, int, Baseline]:
    """An engine where the last checkpoint left off, whatever number of workers wrote it, or at the start."""
    found = checkpoints.latest(Path(job.checkpoints), job.fingerprint)
    if found is None:
        return Engine(job, device), 0, Baseline()
    path, counts = found
    sharded = job.deepspeed["zero_optimization"]["stage"] > 0
    convert = sharded and counts["world_size"] != dist.get_world_size()
    if convert:
        path = checkpoints.for_any_world_size(path)
    engine = Engine(job, device, universal=convert)
    engine.load(path)
    if convert:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(path)
    return engine, counts["step"], Baseline(*counts["baseline"])


def checkpoint_if_due(me: Rank, step: int) -> None:
    """Save after the last step, by steps, by minutes, and once more when a node is about to be taken away.

    Rank 0's clock decides for all, so that no rank saves alone.
    """
    job, now = me.job, time.monotonic()
    decided = [
        step == job.steps
        or (job.checkpoint_steps is not None and step % job.checkpoint_steps == 0)
        or now - me.saved_at > 60 * job.checkpoint_minutes,
        now - me.asked_at > PREEMPTION_SECONDS,
    ]
    dist.broadcast_object_list(decided)
    due, ask = decided
    if ask:
        me.asked_at = now
        warned = me.preempted()
        due, me.warned = due or (warned and not me.warned), warned
    if not due:
        return
    folder = Path(job.checkpoints)
    path = folder / f"{me.attempt:03}-{step:08}"
    me.engine.save(path)
    dist.barrier()
    counts = {"step": step, "attempt": me.attempt, "world_size": me.world_size, "baseline": list(me.baseline)}
    checkpoints.commit(path, job.fingerprint, counts)
    if me.rank == 0:
        checkpoints.keep_last(folder, job.fingerprint, job.keep_checkpoints)
    me.saved_at = time.monotonic()


def write_whole_weights(me: Rank) -> None:
    """All ranks gather, rank 0 writes."""
    tensors = me.engine.whole_tensors()
    if me.rank == 0:
        write_weights(Path(me.job.weights), tensors)
    else:
        for _ in tensors:
            pass
    dist.barrier()


def peak_rss(me: Rank) -> int:
    """The largest resident memory that any rank has had, in bytes."""
    peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024], device=me.device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)
