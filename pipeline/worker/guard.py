"""The guard before the first update: policy and cached reference are one model then, so their log-probs must agree.

In bfloat16 they only nearly do, for other layouts of a batch round otherwise. Where they differ by more than the limit,
the policy is compared with itself, which tells rounding from another reference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist

from dpo.lm.logprobs import sequence_logps
from pipeline.errors import InputError
from pipeline.worker.objectives import GAP, PAIR_GAP, SCORED, Rows, costs, sequences
from pipeline.worker.rank import Rank

PAIRS = 4  # that are computed in two layouts
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


def refuse_other_reference(me: Rank, rows: Rows, metrics: dict[str, float]) -> None:
    """Compare policy and cached reference before the first update.

    Args:
        rows: of the first step.
        metrics: the step's, with the sums that the guard needs.

    Raises:
        InputError: on every rank alike, since the metrics are sums over all of them.
    """
    job, gap = me.job, Gap(metrics[GAP] / metrics[SCORED], metrics[PAIR_GAP])
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
