"""DPO in plain Python floats (float64) and loops, written from arXiv:2305.18290. Slow, and meant to be read.

A sequence is a list of T token ids with T rows of V logits and T truth values: is this token part of the completion?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def log_softmax(row: Row) -> list[float]:
    """log(e^x_i / sum_j e^x_j), with the largest entry taken out first, so that no exponential overflows."""
    top = max(row)
    total = 0.0
    for x in row:
        total += math.exp(x - top)
    return [x - top - math.log(total) for x in row]


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + e^-x)), written so that the exponential is of a negative number."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def token_logps(logits: Sequence[Row], ids: Sequence[int], scored: Sequence[bool]) -> list[float]:
    """log pi(y_t | x, y_<t) of every scored token: the token at t is predicted by the logits at t - 1."""
    logps = []
    for t in range(1, len(ids)):
        if scored[t]:
            logps.append(log_softmax(logits[t - 1])[ids[t]])
    return logps


def completion_logp(logits: Sequence[Row], ids: Sequence[int], scored: Sequence[bool]) -> float:
    """log pi(y | x): the sum over the completion's tokens."""
    total = 0.0
    for logp in token_logps(logits, ids, scored):
        total += logp
    return total


def mean_token_logp(logits: Sequence[Row], ids: Sequence[int], scored: Sequence[bool]) -> float:
    """The mean over the completion's tokens, which the two-model class of x-transformers compares."""
    return completion_logp(logits, ids, scored) / len(token_logps(logits, ids, scored))


def dpo_loss(
    policy_chosen: float,
    policy_rejected: float,
    reference_chosen: float,
    reference_rejected: float,
    beta: float,
    label_smoothing: float = 0.0,
) -> float:
    """One pair's term of eq. 7; with label smoothing e, eq. 3 of the note on conservative DPO.

    -(1 - e) log sigma(h) - e log sigma(-h), with h = beta (log-ratio of chosen - log-ratio of rejected).
    """
    h = beta * (policy_chosen - reference_chosen) - beta * (policy_rejected - reference_rejected)
    return -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)
