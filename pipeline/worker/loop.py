"""The training loop of one rank.

Step k of an epoch is the same rows on any number of workers. Every rank reads them all, works out the same plan and
computes its share; sums of loss and metrics are divided once, by the whole step's denominator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist

from dpo.lm.head import Logps
from dpo.losses import LogRatios, PairLogps
from dpo.step import Baseline, Coupling, couple, pair_logps
from dpo.terms import couples, needs_agreement
from pipeline.errors import Diverged, Stopped
from pipeline.store import run_files
from pipeline.store.memory import peak_bytes
from pipeline.worker.ahead import made_ahead
from pipeline.worker.answers import answer_questions
from pipeline.worker.device import occupy
from pipeline.worker.guard import refuse_other_reference
from pipeline.worker.job import Done, Job
from pipeline.worker.logs import append_line, say
from pipeline.worker.meter import Meter
from pipeline.worker.metrics import COMPUTED, FILLED, LOGICAL, Sums, add, reduced
from pipeline.worker.objectives import GUARDED, MicroBatch, Objective, Rows, costs, lay_out, logical_tokens
from pipeline.worker.plan import learning_rate, plan_step
from pipeline.worker.rank import (
    Rank,
    checkpoint_if_due,
    group_peak_bytes,
    open_rank,
    refuse_not_finite,
    take_best,
    write_whole_weights,
)
from pipeline.worker.rehearsal import how_to_need_less, rehearse
from pipeline.worker.verdict import out_of_memory_as, with_one_verdict

MOST_SKIPPED = 3  # updates that are left out in a row before the run ends
Batches = Callable[[int, int], Iterator[pa.Table]]  # (epoch, first step of it) -> the rows of one step after another


def train(
    job: Job,
    device: torch.device,
    batches: Batches,
    eval_batches: Callable[[], Iterator[pa.Table]],
    preempted: Callable[[], bool] = lambda: False,
    peak: float | None = None,
) -> Done:
    """Train from the job's start, or from its last checkpoint, to its end, and write the weights.

    Args:
        peak: FLOP/s of this rank's card in the job's dtype, for the metrics; None where the card is unknown.

    Raises:
        InputError: on every rank alike.
    """
    return with_one_verdict(Path(job.note), partial(_train, job, device, batches, eval_batches, preempted, peak))


def _train(
    job: Job,
    device: torch.device,
    batches: Batches,
    eval_batches: Callable[[], Iterator[pa.Table]],
    preempted: Callable[[], bool],
    peak: float | None,
) -> Done:
    occupy(device, job.threads)
    say(job.logs, "loading the model")
    with out_of_memory_as(lambda: f"Memory ran out while the model was loaded and tried. {how_to_need_less(job)}"):
        me, start = open_rank(job, device, preempted)
    me.meter = Meter.of(job, peak, me.world_size, me.engine.adapter_parameters)
    rehearse(me.engine, job)
    say(job.logs, f"computing step {start + 1:,}")
    for epoch in range(start // job.steps_per_epoch, job.epochs):
        first = max(0, start - epoch * job.steps_per_epoch)
        _train_epoch(me, epoch, first, batches, eval_batches)
    say(job.logs, "writing the weights")
    weights_step = take_best(me, job.steps)
    refuse_not_finite(me, job.steps)
    write_whole_weights(me)
    peak = group_peak_bytes(device)
    if me.log is not None:
        me.log.close()
    say(job.logs, "")
    unshared = me.engine.unshared
    me.engine.close()
    losses = _number(me.loss_first), _number(me.loss_last)
    return Done(job.steps, weights_step, me.best, *losses, peak, me.baseline.mean, unshared, me.compared)


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
        with out_of_memory_as(partial(_sentence, me, step)):
            row = _optimizer_step(me, rows, step)
        seconds = time.monotonic() - began
        if math.isfinite(row["loss"]):
            me.loss_first, me.loss_last = row["loss"] if me.loss_first is None else me.loss_first, row["loss"]
        if me.log is not None:
            tokens = int(logical_tokens(me.objective, rows).sum())
            row |= {
                "epoch": (step + 1) / job.steps_per_epoch,
                "perf/pairs_per_second": len(rows) / seconds,
                "perf/tokens_per_second": tokens / seconds,
                "perf/step_seconds": seconds,
                "perf/ingest_seconds": ingest,
                "perf/peak_memory_gib": _peak_memory(me.device) / 2**30,
            }
            if me.meter is not None:
                row["perf/mfu"] = me.meter.share(me.objective, rows, seconds)
            me.log.write({"step": step + 1, **row})
        _refuse_not_finite(me, rows, step, row)
        value = _evaluate(me, step + 1, eval_batches()) if _evaluates_after(job, step + 1) else None
        checkpoint_if_due(me, step + 1, value)
        if me.stopping:
            raise Stopped(f"stopped after step {step + 1:,} of {job.steps:,}, which is saved")


def _evaluates_after(job: Job, step: int) -> bool:
    """The last step's weights are evaluated by a stage of their own, unless they have to be compared with others."""
    if step == job.steps:
        return job.best_by is not None
    return job.evaluate_every is not None and step % job.evaluate_every == 0


def _optimizer_step(me: Rank, rows: Rows, step: int) -> dict[str, float]:
    """One update of the weights; returns the step's metrics, equal on every rank."""
    job, objective = me.job, me.objective
    share = _share(me, objective, rows)
    coupling, me.baseline = _first_pass(me, objective, rows, share)
    denominator = objective.denominator(rows)
    sums: Sums = {}
    for number, micro in enumerate(_laid_out(me, objective, rows, share)):
        loss = _micro_batch(me, objective, rows, micro, sums, coupling)
        # DeepSpeed averages over ranks, so times the world size; the step divides once, by all of its terms.
        me.engine.backward((loss * (me.world_size / denominator)).float(), last=number == len(share) - 1)
    total = reduced(me, "train", sums)
    if step == 0 and job.guard_tolerance is not None:
        me.compared = refuse_other_reference(me, rows, total.read(denominator), _laid_out(me, objective, rows, share))
    rate = learning_rate(step, job.steps, job.learning_rate, job.warmup_steps, job.schedule)
    update = me.engine.step(rate)
    me.skipped = 0 if update.applied else me.skipped + 1
    if job.audit:
        mine = [rows.row_ids[i] for indices in share for i in indices]
        where = {"attempt": me.attempt, "epoch": step // job.steps_per_epoch, "step": step + 1, "rank": me.rank}
        append_line(Path(job.logs) / run_files.AUDIT, {**where, "row_ids": mine})
    row = {k: v for k, v in total.read(denominator, grad_norm=update.norm).items() if k not in GUARDED}
    row["learning_rate"] = rate
    return row if update.applied else row | {"skipped": 1.0}


def _refuse_not_finite(me: Rank, rows: Rows, step: int, row: dict[str, float]) -> None:
    """Raise a Diverged on all ranks where the loss is not finite, or gradients again and again.

    A single update without a finite gradient is left out, but at stage 0, where DeepSpeed would not leave it out.
    """
    ids = ", ".join(str(row_id) for row_id in rows.row_ids[:20]) + (", ..." if len(rows) > 20 else "")
    if not math.isfinite(row["loss"]):
        raise Diverged(
            f"Step {step + 1:,}: the loss is {row['loss']}, so nothing was saved from this step on. The row ids of the "
            f"step: {ids}. Lower the learning rate, or look at these rows. Checkpoints of earlier steps stay."
        )
    if me.skipped == 0 or (me.engine.stage > 0 and me.skipped < MOST_SKIPPED):
        return
    raise Diverged(
        f"Step {step + 1:,}: the norm of the gradients is {row['grad_norm']}, so the weights were not updated; nor "
        f"were they in {me.skipped - 1} step(s) just before. The row ids of the step: {ids}. Lower the learning rate, "
        "or look at these rows."
    )


def _sentence(me: Rank, step: int) -> str:
    return f"Memory ran out in step {step + 1:,}, on rank {me.rank} of {me.world_size}. {how_to_need_less(me.job)}"


def _peak_memory(device: torch.device) -> int:
    """Most bytes that this rank has had so far: of its GPU, or of memory without one."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def _share(me: Rank, objective: Objective, rows: Rows) -> list[list[int]]:
    """The micro-batches of this rank."""
    cost = costs(objective, rows, me.engine.way, me.engine.row_each)
    return plan_step(cost.tokens.tolist(), me.world_size, me.job.micro_batch_tokens, cost.padded_rows)[me.rank]


def _first_pass(me: Rank, objective: Objective, rows: Rows, share: list[list[int]]) -> tuple[Coupling | None, Baseline]:
    """Terms that couple the pairs of a step need all of its log-probs: a pass without gradients, summed over ranks."""
    if not couples(objective.mixture):
        return None, me.baseline
    found = torch.zeros(2, len(rows), dtype=torch.float64, device=me.device)
    with torch.no_grad():
        for micro in _laid_out(me, objective, rows, share):
            policy = _forward(me, objective, micro)
            if micro.indices:
                found[:, micro.indices] = torch.stack(pair_logps(micro.batch, policy.logps)[:2])
    dist.all_reduce(found)
    coupling, baseline = couple(PairLogps(*found.cpu()), rows.reference(), objective.mixture, me.baseline)
    on_device = Coupling(coupling.values.to(me.device), LogRatios(*(s.to(me.device) for s in coupling.slopes)))
    return on_device, baseline


def _laid_out(me: Rank, objective: Objective, rows: Rows, share: list[list[int]]) -> Iterator[MicroBatch]:
    """The micro-batches of a share, each laid out while the one before it is computed."""
    return made_ahead(partial(lay_out, me.engine.collate, objective, rows), share)


def _forward(me: Rank, objective: Objective, micro: MicroBatch) -> Logps:
    return me.engine.logps(micro.batch, needs_agreement(objective.mixture))


def _micro_batch(
    me: Rank, objective: Objective, rows: Rows, micro: MicroBatch, sums: Sums, coupling: Coupling | None
) -> torch.Tensor:
    """Forward one micro-batch, add its metrics to `sums`, return its summed loss.

    An empty one has weight 0: a loss that hangs on no graph would not take part in the collectives.
    """
    indices, batch = micro.indices, micro.batch
    policy = _forward(me, objective, micro)
    if not indices:
        add(sums, {COMPUTED: batch.tokens})
        return policy.logps.sum() * 0.0
    terms = objective.terms(policy, micro, rows, coupling.of(indices) if coupling is not None else None)
    logical = float(logical_tokens(objective, rows)[indices].sum())
    add(sums, {LOGICAL: logical, FILLED: batch.filled, COMPUTED: batch.tokens})
    add(sums, {name: value.detach().double() for name, value in terms.metrics.items()})  # read once per step
    return terms.loss


BEST_BY = {"loss": "loss", "accuracy": "rewards/accuracies"}


def _evaluate(me: Rank, step: int, tables: Iterator[pa.Table]) -> float | None:
    """The preference metrics of the held-out pairs, as one row with the prefix eval/; returns the job's best_by."""
    say(me.job.logs, f"evaluating after step {step:,}")
    objective = me.objective.for_evaluation(me.baseline)
    sums: Sums = {}
    pairs = 0
    with torch.no_grad():
        for table in tables:
            rows = Rows(table)
            share = _share(me, objective, rows)
            coupling, _ = _first_pass(me, objective, rows, share)
            for micro in _laid_out(me, objective, rows, share):
                _micro_batch(me, objective, rows, micro, sums, coupling)
            pairs += len(rows)
    metrics = reduced(me, "eval", sums).read(pairs)
    if me.log is not None:
        kept = {k: v for k, v in metrics.items() if k not in GUARDED and not k.startswith("perf/")}
        me.log.write({"step": step, **{f"eval/{name}": value for name, value in kept.items()}})
    if me.job.questions is not None:
        answer_questions(me, me.job.questions, step)
    return None if me.job.best_by is None else metrics[BEST_BY[me.job.best_by]]


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss
