"""The guard before the first update: policy and cached reference are one model then, so their log-probs must agree.

In bfloat16 they only nearly do, for other layouts of a batch round otherwise. Where they differ by more than the limit,
the policy is compared with itself, which tells rounding from another reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist

from dpo.lm.logprobs import sequence_logps
from pipeline.errors import InputError
from pipeline.worker.objectives import GAP, PAIR_GAP, SCORED, MicroBatch, Rows, costs, sequences
from pipeline.worker.rank import Rank

PAIRS = 4  # that are computed in two layouts
LEAST_MOVED = 1e-6  # nats per token by which an adapter that acts moves its base
EXPLAINS = 2.0  # times the noise of these pairs, which rounding may explain: the reference had other batches
# Nats per token between two layouts above which it is no rounding; a small bfloat16 model of the hub had 0.01.
MOST_ROUNDING = {"float32": 1e-4, "bfloat16": 0.05}


class Gap(NamedTuple):
    """Mean absolute differences between two log-probs of one text, in nats."""

    token: float
    pair: float  # of a pair's log-ratio, chosen minus rejected


class Noise(NamedTuple):
    """How far the policy is from itself."""

    layouts: Gap  # between two layouts of the same pairs
    repeated: float  # nats per token, between two forward passes of one batch


class WithoutAdapter(NamedTuple):
    """The policy with its adapter switched off."""

    moved: float  # nats per token between it and the policy
    gap: Gap  # between it and the cached reference


def refuse_other_reference(
    me: Rank, rows: Rows, metrics: dict[str, float], micro_batches: Iterable[MicroBatch]
) -> str | None:
    """Compare policy and cached reference before the first update; where the reference is the base, without adapter.

    Args:
        rows: of the first step.
        metrics: the step's, with the sums that the guard needs.
        micro_batches: this rank's, laid out once more.

    Returns:
        a sentence, where the reference is not the start.

    Raises:
        InputError: on every rank alike, since what is compared are sums over all of them.
    """
    job, gap = me.job, Gap(metrics[GAP] / metrics[SCORED], metrics[PAIR_GAP])
    if job.guard_tolerance is None:
        return None
    if job.compared != "base" and not job.acts:
        return _compared_as_start(me, rows, gap, metrics["loss"])
    with me.engine.adapter_off() as switch:
        without = _without_adapter(me, micro_batches, switch)
    if job.acts and not without.moved > LEAST_MOVED:
        raise InputError(
            f"The adapter of policy.adapter.path changes nothing: with it and without it, the policy's log-probs are "
            f"{without.moved:.1g} nats per token apart. It was not put on as it was trained, or its weights are too "
            "small to count. Take another adapter, or leave policy.adapter.path out to begin with a new one."
        )
    if job.compared != "base":
        return _compared_as_start(me, rows, gap, metrics["loss"])
    with me.engine.adapter_off() as switch:
        switch(False)
        _refuse_gap(me, rows, without.gap)
    return (
        f"reference: base {job.reference} (adapter off); the start is {without.moved:.2g} nats a token away from it, "
        f"first loss {metrics['loss']:.4f}"
    )


def _compared_as_start(me: Rank, rows: Rows, gap: Gap, loss: float) -> str | None:
    if me.job.compared == "start":
        _refuse_gap(me, rows, gap)
        return None
    return (
        f"reference: {me.job.reference}, which is not made of the start, so nothing can be compared; the start is "
        f"{gap.token:.2g} nats a token away from it, first loss {loss:.4f}. See that this is what you want"
    )


def _without_adapter(me: Rank, micro_batches: Iterable[MicroBatch], switch: Callable[[bool], None]) -> WithoutAdapter:
    """Compute this rank's pairs once more, with and without the adapter, and sum over ranks."""
    sums = torch.zeros(5, dtype=torch.float64, device=me.device)
    for micro in micro_batches:
        with torch.no_grad():
            on = me.engine.logps(micro.batch, agreement=False).logps.double()
            switch(False)
            off = me.engine.logps(micro.batch, agreement=False).logps.double()
            switch(True)
        if micro.indices and micro.reference is not None:
            apart = off - micro.reference.double()
            chosen, rejected = sequence_logps(micro.batch, apart).chunk(2)
            pairs = (chosen - rejected).abs().sum()
            found = [(on - off).abs().sum(), apart.abs().sum(), apart.new_tensor(len(apart)), pairs]
            sums += torch.stack([*found, apart.new_tensor(len(chosen))])
    dist.all_reduce(sums)
    moved, apart, tokens, of_pairs, pairs = sums.tolist()
    return WithoutAdapter(moved / tokens, Gap(apart / tokens, of_pairs / pairs))


def _refuse_gap(me: Rank, rows: Rows, gap: Gap) -> None:
    """Refuse a gap that rounding does not explain, between two that should be one model.

    Raises:
        InputError: on every rank alike.
    """
    job = me.job
    if job.guard_tolerance is None or gap.token <= job.guard_tolerance:
        return
    if not math.isfinite(gap.token):
        raise InputError(
            "Before the first update, log-probs of the policy or of the cached reference are not finite. Weights that "
            "are infinite or NaN give such log-probs, as does an overflow in bfloat16. `ray-align cache verify` tells "
            "whether the model still gives what is cached; take other weights, or train.dtype=float32."
        )
    noise = noise_of(me, rows)
    layouts, most = noise.layouts, MOST_ROUNDING[job.dtype]
    rounding = gap.token <= EXPLAINS * layouts.token and layouts.token <= most and noise.repeated <= layouts.token
    if rounding and job.guard_allows_rounding:
        return
    raise InputError(
        f"Before the first update, policy and cached reference differ by {gap.token:.3g} nats per token on average; "
        f"the limit in {job.dtype} is {job.guard_tolerance:g} (reference.guard_tolerance). A pair's margin of "
        f"log-ratios, which should be 0, is {gap.pair:.3g} nats on average. Two layouts of these weights differ by "
        f"{layouts.token:.2g} per token ({layouts.pair:.2g} per pair) here. {_cause(gap, noise, rounding, most)}"
    )


def _cause(gap: Gap, noise: Noise, rounding: bool, most: float) -> str:
    """The cause of a gap, as far as the policy's own numbers tell it, and what to do."""
    if rounding:
        return (
            f"The gap is no more than {EXPLAINS:g} times that, so it is rounding: unset reference.guard_tolerance, or "
            f"raise it, for example to {2 * gap.token:.1g}."
        )
    if noise.repeated > max(gap.token / EXPLAINS, noise.layouts.token / EXPLAINS):
        return (
            f"The same batch computed twice differs by {noise.repeated:.2g} per token, so something in the model acts "
            "at random, and no reference can equal it. Turn it off in the model's config.json."
        )
    if noise.layouts.token > most:
        return (
            "That is no rounding: this model's log-probs of a text depend on what is computed beside it, so no "
            "reference can equal them. Take another model."
        )
    return (
        "So the policy agrees with itself, and it is the cached reference that is of another function: of other "
        "weights, or of another version or kind of device. Remove the reference's folder from the workspace's cache to "
        "score it again."
    )


def noise_of(me: Rank, rows: Rows) -> Noise:
    """Compute a few pairs of a step together, once more together, and each sequence by itself.

    All ranks compute the same pairs, because each forward pass is a collective operation under ZeRO-3.
    """
    objective, engine = me.objective, me.engine
    cost, pairs = costs(objective, rows, engine.way, engine.row_each), list(range(min(PAIRS, len(rows))))
    while len(pairs) > 1 and cost.of(pairs) > me.job.micro_batch_tokens:
        pairs.pop()
    wanted = sequences(objective, rows, pairs)
    together = engine.collate(wanted, len(pairs))
    with torch.no_grad():
        first, second = (engine.logps(together, agreement=False).logps for _ in range(2))
        alone = [engine.logps(engine.collate([each], 1), agreement=False).logps for each in wanted]
    differences = first.double() - torch.cat(alone).double()
    chosen, rejected = sequence_logps(together, differences).chunk(2)
    repeated = (first.double() - second.double()).abs().mean()
    means = torch.stack([differences.abs().mean(), (chosen - rejected).abs().mean(), repeated])
    dist.all_reduce(means)
    token, pair, again = (means / me.world_size).tolist()
    return Noise(Gap(token, pair), again)
