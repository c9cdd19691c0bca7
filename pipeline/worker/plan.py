"""Which pairs of an optimizer step each rank computes, and in which micro-batches.

A pure function of the step's lengths, so all ranks compute the same plan and nobody talks.
"""

from __future__ import annotations

import heapq
from math import cos, pi

Plan = list[list[list[int]]]  # [rank][micro-batch] -> indices of pairs


def plan_step(widths: list[int], sequences: int, world_size: int, token_budget: int) -> Plan:
    """Longest-first packing over ranks, then micro-batches under the budget.

    Args:
        widths: tokens of each pair's longest sequence, to which its sequences are padded.
        sequences: sequences that a pair brings (2; 1 where one side is trained).
        token_budget: padded tokens of a micro-batch; a pair above it runs alone.

    Returns:
        Every pair once; as many micro-batches on every rank, since each of them is a collective under ZeRO. A rank
        with too few pairs gets empty micro-batches.
    """
    longest_first = sorted(range(len(widths)), key=lambda i: (-widths[i], i))
    loads = [(0, rank) for rank in range(world_size)]
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for i in longest_first:
        load, rank = heapq.heappop(loads)
        shares[rank].append(i)
        heapq.heappush(loads, (load + widths[i], rank))
    plan = [_under_budget(share, widths, sequences, token_budget) for share in shares]
    count = max(map(len, plan))
    return [_exactly(micro_batches, count) for micro_batches in plan]


def _under_budget(share: list[int], widths: list[int], sequences: int, token_budget: int) -> list[list[int]]:
    """Cut a longest-first share where the next pair, padded to the first one's width, would exceed the budget."""
    micro_batches: list[list[int]] = []
    for i in share:
        current = micro_batches[-1] if micro_batches else []
        if current and (len(current) + 1) * sequences * widths[current[0]] <= token_budget:
            current.append(i)
        else:
            micro_batches.append([i])
    return micro_batches


def _exactly(micro_batches: list[list[int]], count: int) -> list[list[int]]:
    """Halve the micro-batches with the most pairs until there are `count`; fill with empty ones where none can be."""
    micro_batches = list(micro_batches)
    while len(micro_batches) < count:
        at = max(range(len(micro_batches)), key=lambda i: len(micro_batches[i]), default=None)
        if at is None or len(micro_batches[at]) < 2:
            return micro_batches + [[]] * (count - len(micro_batches))
        whole = micro_batches[at]
        micro_batches[at : at + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return micro_batches


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """The rate of step 0 .. steps-1: a pure function, so that resuming needs no scheduler state.

    Rises linearly over the warm-up, then stays ("constant") or falls to 0 just after the last step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + cos(pi * progress))
    raise ValueError(f"no schedule {schedule!r}; there are constant, linear and cosine")
