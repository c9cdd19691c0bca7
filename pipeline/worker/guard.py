"""The guard before the first update: policy and cached reference are one model then, so their log-probs must agree.

In bfloat16 they only nearly do, for other layouts of a batch round otherwise. A run that is about to be refused
measures how much that is here, so that its message can tell rounding from another model.
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
ROUNDING = 2.0  # times the noise that rounding may explain: the reference had other batches, and maybe another card
CAUSES = (
    "They should be one model. Likely causes: the weights changed after they were scored, another dtype or attention "
    "kernel for the reference, dropout left on, or an adapter that only one of them has. Remove the reference's folder "
    "from the workspace's cache to score it again."
)


class Gap(NamedTuple):
    """Mean absolute differences between two log-probs of one text, in nats."""

    token: float
    pair: float  # of a pair's log-ratio, chosen minus rejected


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
    noise = layout_noise(me, rows)
    if gap.token <= ROUNDING * noise.token:
        advice = (
            f"The gap is no more than {ROUNDING:g} times that, so it is rounding too: raise reference.guard_tolerance, "
            f"for example to {2 * gap.token:.1g}."
        )
    else:
        advice = CAUSES
    raise InputError(
        f"Before the first update, policy and cached reference differ by {gap.token:.3g} nats per token on average; "
        f"the limit in {job.dtype} is {job.guard_tolerance:g} (reference.guard_tolerance). A pair's margin of "
        f"log-ratios, which should be 0, is {gap.pair:.3g} nats on average. Two layouts of these weights differ by "
        f"{noise.token:.2g} per token ({noise.pair:.2g} per pair) here, so that much is rounding. {advice}"
    )


def layout_noise(me: Rank, rows: Rows) -> Gap:
    """Compute a few pairs of a step together and each sequence by itself; the differences are rounding.

    All ranks compute the same pairs, because each forward pass is a collective operation under ZeRO-3.
    """
    objective, engine = me.objective, me.engine
    cost, pairs = costs(objective, rows, engine.way, engine.row_each), list(range(min(PAIRS, len(rows))))
    while len(pairs) > 1 and cost.of(pairs) > me.job.micro_batch_tokens:
        pairs.pop()
    wanted = sequences(objective, rows, pairs)
    together = engine.collate(wanted, len(pairs))
    with torch.no_grad():
        first = engine.logps(together, agreement=False).logps
        alone = [engine.logps(engine.collate([each], 1), agreement=False).logps for each in wanted]
    differences = first.double() - torch.cat(alone).double()
    chosen, rejected = sequence_logps(together, differences).chunk(2)
    means = torch.stack([differences.abs().mean(), (chosen - rejected).abs().mean()])
    dist.all_reduce(means)
    return Gap(*(means / me.world_size).tolist())
