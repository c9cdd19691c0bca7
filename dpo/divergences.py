"""Scores of f-divergences, which f-DPO (arXiv:2309.16240) uses in place of log-ratios: f'(policy / reference).

A score is a function of the log-ratio c = log(policy / reference). Its constant is TRL's, so every score is 0 at c = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXPONENT = 80.0  # TRL's limit: e^80 and sums of it fit into float32 and bfloat16


def _expm1(x: Tensor, largest: float) -> Tensor:
    return torch.expm1(x.clamp(max=largest))


def _alpha_score(c: Tensor, alpha: float, largest: float) -> Tensor:
    """Return (e^{(a - 1) c} - 1) / (a - 1). Its limit at a = 1 is c; like TRL, use the limit for |a - 1| < 1e-6."""
    order = alpha - 1
    return c if abs(order) < 1e-6 else _expm1(order * c, largest) / order


DIVERGENCES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "reverse_kl": lambda c, _alpha, _largest: c,
    "forward_kl": lambda c, _alpha, largest: -_expm1(-c, largest),  # 1 - e^-c
    "js": lambda c, _alpha, _largest: math.log(2) + F.logsigmoid(c),
    "alpha": _alpha_score,
}


def scores(
    c: Tensor, r: Tensor, divergence: str, alpha: float, largest: float = LARGEST_EXPONENT
) -> tuple[Tensor, Tensor]:
    """Return the scores of both sides, [B] each: f' of table 1 in arXiv:2309.16240. For reverse KL they are c and r.

    reverse_kl: c. forward_kl: 1 - e^-c. js: log 2 + log s(c). alpha: (e^{(a - 1) c} - 1) / (a - 1), where a is 1 minus
    the paper's alpha. Exponents are clamped at `largest`, in float64 too, so that value and gradient are finite: above
    it the score is constant and its gradient is 0. TRL clamps only those of alpha, at 80, and not in float64.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}: one of {', '.join(DIVERGENCES)}")
    score = DIVERGENCES[divergence]
    return score(c, alpha, largest), score(r, alpha, largest)
