"""The training loop of one rank.

Step k of an epoch is the same rows on any number of workers. Every rank reads them all, works out the same plan and
computes its share; sums of loss and metrics are divided once, by the whole step's denominator.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from dpo.models.weights import write_weights
from pipeline.errors import InputError
from pipeline.worker import checkpoints
from pipeline.worker.engine import Engine, sum_over_ranks
from pipeline.worker.job import Done, Job
from pipeline.worker.logs import MetricLog, append_line
from pipeline.worker.objectives import GAP, SCORED, Objective, Rows
from pipeline.worker.plan import learning_rate, plan_step

Batches = Callable[[int, int], Iterator[pa.Table]]  # (epoch, first step of it) -> the rows of one step after another


@dataclass
class Rank:
    """This process within the group, and what it holds."""

    job: Job
    engine: Engine
    log: MetricLog | None  # rank 0
    rank: int
    world_size: int
    attempt: int
    saved_at: float

    @property
    def device(self) -> torch.device:
        return self.engine.device


def train(job: Job, device: torch.device, batches: Batches, eval_batches: Callable[[], Iterator[pa.Table]]) -> Done:
    """Train from the job's start, or from its last checkpoint, to its end, and write the weights."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    engine = Engine(Path(job.model), job.deepspeed, job.adamw, job.dtype, device)
    found = checkpoints.latest(Path(job.checkpoints), job.fingerprint, dist.get_world_size())
    start = 0
    if found is not None:
        path, counts = found
        engine.load(path)
        start = counts["step"]
    me = _open(job, engine, start)
    for epoch in range(start // job.steps_per_epoch, job.epochs):
        first = max(0, start - epoch * job.steps_per_epoch)
        _train_epoch(me, epoch, first, batches, eval_batches)
    _write_weights(me)
    peak = _peak_rss(me)
    if me.log is not None:
        me.log.close()
    engine.close()
    first_row, last_row = _first_and_last(Path(job.logs))
    return Done(job.steps, first_row["loss"], last_row["loss"], peak)


def _open(job: Job, engine: Engine, start: int) -> Rank:
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
    return Rank(job, engine, log, rank, dist.get_world_size(), attempt[0], time.monotonic())


def _train_epoch(
    me: Rank, epoch: int, first: int, batches: Batches, eval_batches: Callable[[], Iterator[pa.Table]]
) -> None:
    job = me.job
    tables = batches(epoch, first)
    for step_of_epoch in range(first, job.steps_per_epoch):
        began = time.monotonic()
        rows = Rows(next(tables))
        ingest = time.monotonic() - began
        step = epoch * job.steps_per_epoch + step_of_epoch
        row = _optimizer_step(me, rows, step)
        seconds = time.monotonic() - began
        if me.log is not None:
            tokens = int(job.objective.tokens(rows).sum())
            row |= {
                "epoch": (step + 1) / job.steps_per_epoch,
                "perf/pairs_per_second": len(rows) / seconds,
                "perf/tokens_per_second": tokens / seconds,
                "perf/step_seconds": seconds,
                "perf/ingest_seconds": ingest,
            }
            me.log.write({"step": step + 1, **row})
        evaluate_now = job.evaluate_every is not None and (step + 1) % job.evaluate_every == 0
        if evaluate_now and step + 1 < job.steps:  # the last step's weights are evaluated by their own stage
            _evaluate(me, step + 1, eval_batches())
        _checkpoint_if_due(me, step + 1)


def _optimizer_step(me: Rank, rows: Rows, step: int) -> dict[str, float]:
    """One update of the weights; returns the step's metrics, equal on every rank."""
    job, objective = me.job, me.job.objective
    shares = plan_step(objective.widths(rows).tolist(), objective.sequences, me.world_size, job.micro_batch_tokens)
    share = shares[me.rank]
    denominator = objective.denominator(rows)
    sums: dict[str, float] = {}
    for number, indices in enumerate(share):
        loss = _micro_batch(me, rows, indices, sums)
        # DeepSpeed averages over ranks, so times the world size; the step divides once, by all of its terms.
        me.engine.backward((loss * (me.world_size / denominator)).float(), last=number == len(share) - 1)
    metrics = _divide(me, sums, denominator)
    if step == 0 and job.guard_tolerance is not None:
        _guard(metrics.pop(GAP) / metrics.pop(SCORED), job.guard_tolerance, job.dtype)
    rate = learning_rate(step, job.steps, job.learning_rate, job.warmup_steps, job.schedule)
    norm = me.engine.step(rate)
    if job.audit:
        mine = [rows.row_ids[i] for indices in share for i in indices]
        where = {"attempt": me.attempt, "epoch": step // job.steps_per_epoch, "step": step + 1, "rank": me.rank}
        append_line(Path(job.logs) / "audit.jsonl", {**where, "row_ids": mine})
    return {k: v for k, v in metrics.items() if k not in (GAP, SCORED)} | {"grad_norm": norm, "learning_rate": rate}


def _micro_batch(me: Rank, rows: Rows, indices: list[int], sums: dict[str, float]) -> torch.Tensor:
    """Forward one micro-batch, add its metrics to `sums`, return its summed loss.

    An empty one computes the step's narrowest pair at weight 0: the other ranks' collectives wait for this rank, and
    a loss that hangs on no graph would not take part in them.
    """
    objective: Objective = me.job.objective
    computed = indices or [int(objective.widths(rows).argmin())]
    batch = objective.collate(rows, computed)
    terms = objective.terms(me.engine.logps(batch), batch, rows, computed)
    weight = 1.0 if indices else 0.0
    values = {"real": float(objective.tokens(rows)[computed].sum()), **{k: float(v) for k, v in terms.metrics.items()}}
    for name, value in {"computed": batch.tokens, **{k: v * weight for k, v in values.items()}}.items():
        sums[name] = sums.get(name, 0.0) + value
    return terms.loss * weight


def _divide(me: Rank, sums: dict[str, float], denominator: int) -> dict[str, float]:
    """Sums of this rank -> metrics of the whole step."""
    total = dict(zip(sums, sum_over_ranks(list(sums.values()), me.device), strict=True))
    padding = 1 - total.pop("real") / total.pop("computed")
    return {name: value / denominator for name, value in total.items()} | {"perf/padding_fraction": padding}


def _guard(gap: float, tolerance: float, dtype: str) -> None:
    """Policy and cached reference are the same model before the first update, so they must agree.

    Raises:
        InputError: on every rank alike, since the gap is summed over all of them.
    """
    if gap <= tolerance:
        return
    raise InputError(
        f"Before the first update, policy and cached reference differ by {gap:.3g} nats a token on average; the limit "
        f"in {dtype} is {tolerance:g} (reference.guard_tolerance). They should be one model. Likely causes: the "
        "weights changed after they were scored, another dtype or attention kernel for the reference, dropout left "
        "on, or an adapter that only one of them has. Remove the reference's folder from the workspace's "
        "cache to score it anew."
    )


def _evaluate(me: Rank, step: int, tables: Iterator[pa.Table]) -> None:
    """The preference metrics of the held-out pairs, as one row with the prefix eval/."""
    sums: dict[str, float] = {}
    pairs = 0
    with me.engine.evaluating():
        for table in tables:
            rows = Rows(table)
            objective = me.job.objective
            plan = plan_step(
                objective.widths(rows).tolist(), objective.sequences, me.world_size, me.job.micro_batch_tokens
            )
            for indices in plan[me.rank]:
                _micro_batch(me, rows, indices, sums)
            pairs += len(rows)
    metrics = _divide(me, sums, pairs)
    if me.log is not None:
        kept = {k: v for k, v in metrics.items() if k not in (GAP, SCORED) and not k.startswith("perf/")}
        me.log.write({"step": step, **{f"eval/{name}": value for name, value in kept.items()}})


def _checkpoint_if_due(me: Rank, step: int) -> None:
    """Rank 0's clock decides for all, so that no rank saves alone."""
    job = me.job
    due = [
        step == job.steps
        or (job.checkpoint_steps is not None and step % job.checkpoint_steps == 0)
        or time.monotonic() - me.saved_at > 60 * job.checkpoint_minutes
    ]
    dist.broadcast_object_list(due)
    if not due[0]:
        return
    folder = Path(job.checkpoints)
    path = folder / f"{me.attempt:03}-{step:08}"
    me.engine.save(path)
    dist.barrier()
    counts = {"step": step, "attempt": me.attempt, "world_size": me.world_size}
    checkpoints.commit(path, job.fingerprint, counts)
    if me.rank == 0:
        checkpoints.keep_last(folder, job.fingerprint, job.keep_checkpoints)
    me.saved_at = time.monotonic()


def _write_weights(me: Rank) -> None:
    """All ranks gather, rank 0 writes."""
    tensors = me.engine.whole_tensors()
    if me.rank == 0:
        write_weights(Path(me.job.weights), tensors)
    else:
        for _ in tensors:
            pass
    dist.barrier()


def _peak_rss(me: Rank) -> int:
    """The largest resident memory that any rank has had, in bytes."""
    peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024], device=me.device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return int(peak)


def _first_and_last(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row]
    return steps[0], steps[-1]
