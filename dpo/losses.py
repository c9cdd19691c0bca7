"""Preference losses: pure functions from log-probs to one term a pair. Nothing here reduces or communicates.

B pairs. beta scales the pull to the reference: a larger beta keeps the policy closer to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class PairLogps(NamedTuple):
    """Summed log-probs of the two completions of B pairs."""

    chosen: Tensor  # [B]
    rejected: Tensor  # [B]


def margin(policy: PairLogps, reference: PairLogps) -> Tensor:
    """Log-ratio of chosen minus log-ratio of rejected, [B]: h in arXiv:2310.12036, eq. 17."""
    return (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation, [B]: eq. 7 of arXiv:2305.18290.

    label_smoothing > 0 is conservative DPO: the chance that a label is the wrong way round (eq. 3 of its note,
    https://ericmitchell.ai/cdpo.pdf).
    """
    h = beta * margin(policy, reference)
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


LOSSES: dict[str, Callable[..., Tensor]] = {"sigmoid": dpo_loss}
