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


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def pair_loss(kind: str, c: float, r: float, beta: float, e: float = 0.0, tau: float = 0.05) -> float:
    """One pair's term of a loss, from the log-ratios c and r of its two completions, as the papers write it."""
    h = c - r
    if kind == "hinge":
        return max(0.0, 1 - beta * h)
    if kind == "robust":
        kept = -(1 - e) * log_sigmoid(beta * h)
        flipped = -e * log_sigmoid(-beta * h)
        return (kept - flipped) / (1 - 2 * e)
    if kind == "exo_pair":
        total = 0.0
        for probability, target in ((sigmoid(beta * h), 1 - e), (sigmoid(-beta * h), e)):
            total += probability * (math.log(probability) - math.log(target))
        return total
    if kind == "nca_pair":
        return -log_sigmoid(beta * c) - 0.5 * (log_sigmoid(-beta * c) + log_sigmoid(-beta * r))
    if kind == "bco_pair":
        return -log_sigmoid(beta * c) - log_sigmoid(-beta * r)
    if kind == "sppo_hard":
        return (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2
    if kind == "apo_zero":
        return 1 - sigmoid(beta * c) + sigmoid(beta * r)
    if kind == "apo_down":
        return sigmoid(beta * c) + 1 - sigmoid(beta * h)
    if kind == "discopop":
        x = beta * h
        m = sigmoid(x / tau)
        return (1 - m) * -log_sigmoid(x) + m * math.exp(-x)
    raise ValueError(kind)


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
