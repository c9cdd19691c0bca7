"""DPO in plain Python floats (float64) and loops, written from arXiv:2305.18290. Slow, and meant to be read.

A sequence is a list of T token ids with T rows of V logits and T truth values: is this token part of the completion?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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


class Pair(NamedTuple):
    """Of one pair: both completions' log-probs under the policy and the reference, and their lengths in tokens."""

    chosen: float
    rejected: float
    reference_chosen: float
    reference_rejected: float
    chosen_tokens: int
    rejected_tokens: int


def f_prime(t: float, divergence: str, a: float) -> float:
    """The derivative of f at the ratio t = policy / reference (table 1 of arXiv:2309.16240; a is 1 - its alpha)."""
    if divergence == "reverse_kl":
        return math.log(t)
    if divergence == "forward_kl":
        return (t - 1) / t
    if divergence == "js":
        return math.log(2 * t / (1 + t))
    if divergence == "alpha":
        return (t ** (a - 1) - 1) / (a - 1)
    raise ValueError(divergence)


class Options(NamedTuple):
    """Every loss's options, by the names that `dpo.losses` gives them."""

    beta: float = 1.0
    label_smoothing: float = 0.0
    tau: float = 0.05
    gamma: float = 0.5
    odds_weight: float = 0.1
    baseline: float = 0.0
    divergence: str = "reverse_kl"
    divergence_alpha: float = 0.5


def mean_loss(kind: str, pair: Pair, c: float, r: float, given: Options) -> float:
    """One pair's term of a loss of token means; c and r are its log-ratios, or the scores in their place."""
    if kind in ("ipo", "sigmoid_norm"):
        h = c / pair.chosen_tokens - r / pair.rejected_tokens
        return (h - 1 / (2 * given.beta)) ** 2 if kind == "ipo" else -log_sigmoid(given.beta * h)
    mean_chosen, mean_rejected = pair.chosen / pair.chosen_tokens, pair.rejected / pair.rejected_tokens
    if kind == "simpo":
        return -log_sigmoid(given.beta * mean_chosen - given.beta * mean_rejected - given.gamma)
    if kind == "orpo":
        chosen, rejected = math.exp(mean_chosen), math.exp(mean_rejected)
        odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
        return -mean_chosen - given.odds_weight * math.log(odds_ratio / (1 + odds_ratio))
    raise ValueError(kind)


def sorted_loss(kind: str, pairs: Sequence[Pair], beta: float, e: float) -> list[float]:
    """AOT's terms, from the smallest quantile on: the k-th smallest of one list against the k-th of the other."""
    high, low = [], []
    for p in pairs:
        if kind == "aot":
            high.append(p.chosen - p.rejected)
            low.append(p.reference_chosen - p.reference_rejected)
        else:
            high.append(p.chosen - p.reference_chosen)
            low.append(p.rejected - p.reference_rejected)
    terms = []
    while high:
        h = beta * (min(high) - min(low))
        high.remove(min(high))
        low.remove(min(low))
        terms.append(-(1 - e) * log_sigmoid(h) - e * log_sigmoid(-h))
    return terms


def loss_term(kind: str, p: Pair, given: Options) -> float:
    """One pair's term of any loss but AOT's."""
    c = f_prime(math.exp(p.chosen - p.reference_chosen), given.divergence, given.divergence_alpha)
    r = f_prime(math.exp(p.rejected - p.reference_rejected), given.divergence, given.divergence_alpha)
    if kind == "sft":
        return -p.chosen
    if kind == "cpo":
        return dpo_loss(p.chosen, p.rejected, 0.0, 0.0, given.beta, given.label_smoothing)
    if kind == "sigmoid":
        return dpo_loss(c, r, 0.0, 0.0, given.beta, given.label_smoothing)
    if kind in ("ipo", "sigmoid_norm", "simpo", "orpo"):
        return mean_loss(kind, p, c, r, given)
    if kind == "bco_pair":  # the baseline shifts both rewards
        return pair_loss(kind, c - given.baseline / given.beta, r - given.baseline / given.beta, given.beta)
    return pair_loss(kind, c, r, given.beta, given.label_smoothing, given.tau)


def loss_terms(kind: str, pairs: Sequence[Pair], **options: float | str) -> list[float]:
    """The terms of any loss of `dpo.losses`, by its name there."""
    given = Options(**options)
    if kind in ("aot", "aot_unpaired"):
        return sorted_loss(kind, pairs, given.beta, given.label_smoothing)
    return [loss_term(kind, p, given) for p in pairs]
