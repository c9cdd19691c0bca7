"""The plan of an optimizer step: the pairs that each rank computes, in micro-batches.

The plan is a pure function of the step's lengths, so all ranks compute the same plan without communication.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import partial
from math import cos, pi

Plan = list[list[list[int]]]  # [rank][micro-batch] -> indices of pairs


def plan_step(costs: Sequence[int], world_size: int, token_budget: int, padded_rows: int = 0) -> Plan:
    """Distribute pairs over ranks, longest first, then over micro-batches within the budget.

    Args:
        costs: tokens of each pair; with padding, tokens of its longest row.
        token_budget: tokens of one micro-batch, padding included; a pair above it runs alone.
        padded_rows: rows per pair, each padded to the longest row of the micro-batch; 0 without padding.

    Returns:
        Each pair once. All ranks have the same number of micro-batches, because each one is a collective operation
        under ZeRO. A rank with too few pairs gets empty micro-batches.
    """
    longest_first = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    loads = [(0, rank) for rank in range(world_size)]
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for i in longest_first:
        load, rank = heapq.heappop(loads)
        shares[rank].append(i)
        heapq.heappush(loads, (load + costs[i], rank))
    _even_out(shares, costs)
    under_budget = partial(_padded, rows=padded_rows) if padded_rows else _unpadded
    plan = [under_budget(share, costs, token_budget) for share in shares]
    count = max(map(len, plan))
    return [_exactly(micro_batches, count) for micro_batches in plan]


def _even_out(shares: list[list[int]], costs: Sequence[int]) -> None:
    """Swap pairs between the fullest and the emptiest rank, in place, until they differ by 1 % or no swap helps."""
    loads = [sum(costs[i] for i in share) for share in shares]
    for _ in range(4 * len(shares)):
        full, empty = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[full] - loads[empty]
        if gap <= loads[full] / 100 or not shares[empty]:
            return
        swaps = ((abs(2 * (costs[a] - costs[b]) - gap), a, b) for a in shares[full] for b in shares[empty])
        rest, a, b = min(swaps)
        if rest >= gap:
            return
        for mine, gone, come in ((full, a, b), (empty, b, a)):
            shares[mine] = sorted([i for i in shares[mine] if i != gone] + [come], key=lambda i: (-costs[i], i))
            loads[mine] += costs[come] - costs[gone]


def _padded(share: list[int], costs: Sequence[int], token_budget: int, rows: int) -> list[list[int]]:
    """Start a new micro-batch where the next pair, padded to the width of the first, would exceed the budget."""
    micro_batches: list[list[int]] = []
    for i in share:
        current = micro_batches[-1] if micro_batches else []
        if current and (len(current) + 1) * rows * costs[current[0]] <= token_budget:
            current.append(i)
        else:
            micro_batches.append([i])
    return micro_batches


def _unpadded(share: list[int], costs: Sequence[int], token_budget: int) -> list[list[int]]:
    """Distribute pairs, longest first, over as few micro-batches as possible, each to the emptiest with room for it.

    This makes the micro-batches similar in size, which keeps the largest one, and so the peak memory, small.
    """
    alone = sum(costs[i] >= token_budget for i in share)
    least = alone + -(-sum(costs[i] for i in share[alone:]) // token_budget)
    micro_batches: list[list[int]] = [[] for _ in range(least)]
    loads = [(0, number) for number in range(least)]
    for i in share:
        load, number = loads[0]
        if micro_batches[number] and load + costs[i] > token_budget:
            number, load = len(micro_batches), 0
            micro_batches.append([])
            heapq.heappush(loads, (costs[i], number))
        else:
            heapq.heapreplace(loads, (load + costs[i], number))
        micro_batches[number].append(i)
    return micro_batches


def _exactly(micro_batches: list[list[int]], count: int) -> list[list[int]]:
    """Halve the micro-batches with the most pairs until there are `count`. If none can be halved, add empty ones."""
    micro_batches = list(micro_batches)
    while len(micro_batches) < count:
        at = max(range(len(micro_batches)), key=lambda i: len(micro_batches[i]), default=None)
        if at is None or len(micro_batches[at]) < 2:
            return micro_batches + [[]] * (count - len(micro_batches))
        whole = micro_batches[at]
        micro_batches[at : at + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return micro_batches


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """Return the learning rate of a step, 0 to steps - 1. A pure function, so resuming needs no scheduler state.

    The rate rises linearly over the warm-up, then stays ("constant") or falls to 0 just after the last step.
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
    raise ValueError(f"unknown schedule {schedule!r}; use constant, linear or cosine")
