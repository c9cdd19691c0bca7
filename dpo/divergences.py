"""What f-DPO puts in the place of a log-ratio: the score f'(policy / reference) of an f-divergence, arXiv:2309.16240.

A score is written in the log-ratio c = log(policy / reference); the constants are TRL's, so that every score is 0 at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXPONENT = 80.0  # TRL's: e^80 and its sums stay within float32 and bfloat16


def _expm1(x: Tensor, largest: float) -> Tensor:
    return torch.expm1(x.clamp(max=largest))


def _alpha_score(c: Tensor, alpha: float, largest: float) -> Tensor:
    """(e^{(a - 1) c} - 1) / (a - 1); its limit at a = 1 is c, which TRL takes within 1e-6 of it."""
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
    """Scores of both sides, [B] each: f' of arXiv:2309.16240, table 1, in place of its reverse KL's c and r.

    reverse_kl: c. forward_kl: 1 - e^-c. js: log 2 + log s(c). alpha: (e^{(a - 1) c} - 1) / (a - 1); a = 1 - the paper's
    alpha. Exponents end at `largest`, in float64 too, so that value and gradient are finite: beyond it the score is
    constant and its gradient 0. TRL ends only those of alpha, at 80, and knows no float64 there.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}: one of {', '.join(DIVERGENCES)}")
    score = DIVERGENCES[divergence]
    return score(c, alpha, largest), score(r, alpha, largest)
