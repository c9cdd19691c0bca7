"""Preference losses: pure functions from log-probs to one term a pair. Nothing here reduces or communicates.

B pairs. Log-probs are sums over a completion's tokens. beta scales the pull to the reference: a larger beta keeps the
policy closer to it. In the formulas c and r are the log-ratios of the chosen and the rejected completion (policy less
reference), h = c - r, s the logistic function, e the label smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PairLogps(NamedTuple):
    """Summed log-probs of the two completions of B pairs."""

    chosen: Tensor  # [B]
    rejected: Tensor  # [B]


def log_ratios(policy: PairLogps, reference: PairLogps) -> PairLogps:
    """log policy - log reference of both sides: c and r."""
    return PairLogps(policy.chosen - reference.chosen, policy.rejected - reference.rejected)


def margin(policy: PairLogps, reference: PairLogps) -> Tensor:
    """Log-ratio of chosen minus log-ratio of rejected, [B]: h in arXiv:2310.12036, eq. 17."""
    c, r = log_ratios(policy, reference)
    return c - r


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation, [B]: eq. 7 of arXiv:2305.18290. -log s(beta h).

    label_smoothing > 0 is conservative DPO: the chance that a label is the wrong way round (eq. 3 of its note,
    https://ericmitchell.ai/cdpo.pdf).
    """
    h = beta * margin(policy, reference)
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def hinge_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """RSO's hinge, [B]: max(0, 1 - beta h), section 3.3 of arXiv:2309.06657."""
    return torch.relu(1 - beta * margin(policy, reference))


def robust_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """Provably robust DPO, [B]: eq. 11 of arXiv:2403.00409. Unbiased where a share e < 0.5 of the labels is wrong.

    [-(1 - e) log s(beta h) + e log s(-beta h)] / (1 - 2 e); it may be negative.
    """
    h = beta * margin(policy, reference)
    kept, flipped = -(1 - label_smoothing) * F.logsigmoid(h), -label_smoothing * F.logsigmoid(-h)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def exo_pair_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 1e-3) -> Tensor:
    """EXO on pairs, [B]: eq. 16 of arXiv:2402.00856, the reverse KL to labels smoothed by e, 0 < e < 1.

    s(beta h) [log s(beta h) - log(1 - e)] + s(-beta h) [log s(-beta h) - log e].
    """
    h = beta * margin(policy, reference)
    for_chosen = F.logsigmoid(h) - math.log1p(-label_smoothing)
    for_rejected = F.logsigmoid(-h) - math.log(label_smoothing)
    return h.sigmoid() * for_chosen + (-h).sigmoid() * for_rejected


def nca_pair_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """Noise-contrastive alignment on pairs, [B]: eq. 10 of arXiv:2402.05369, both sides weighted alike.

    -log s(beta c) - 1/2 log s(-beta c) - 1/2 log s(-beta r).
    """
    c, r = log_ratios(policy, reference)
    return -F.logsigmoid(beta * c) - 0.5 * F.logsigmoid(-beta * c) - 0.5 * F.logsigmoid(-beta * r)


def bco_pair_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """Binary classifier optimisation on pairs, [B]: section 4 of arXiv:2404.04656, without its reward shift.

    -log s(beta c) - log s(-beta r).
    """
    c, r = log_ratios(policy, reference)
    return -F.logsigmoid(beta * c) - F.logsigmoid(-beta * r)


def sppo_hard_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """Self-play preference optimisation, [B]: eq. 4.7 of arXiv:2405.00675 with probabilities 1 and 0.

    (c - 1/(2 beta))^2 + (r + 1/(2 beta))^2.
    """
    c, r = log_ratios(policy, reference)
    return (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2


def apo_zero_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """Anchored preference optimisation, [B]: eq. 7 of arXiv:2408.06266, for chosen answers better than the model's.

    1 - s(beta c) + s(beta r).
    """
    c, r = log_ratios(policy, reference)
    return (-beta * c).sigmoid() + (beta * r).sigmoid()


def apo_down_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """Anchored preference optimisation, [B]: eq. 8 of arXiv:2408.06266, for chosen answers worse than the model's.

    s(beta c) + 1 - s(beta h).
    """
    c, r = log_ratios(policy, reference)
    return (beta * c).sigmoid() + (-beta * (c - r)).sigmoid()


def discopop_loss(policy: PairLogps, reference: PairLogps, *, beta: float, tau: float = 0.05) -> Tensor:
    """DiscoPOP's log-ratio modulated loss, [B]: eq. 5 of arXiv:2406.08414.

    (1 - m) (-log s(x)) + m exp(-x), with x = beta h and m = s(x / tau).
    """
    x = beta * margin(policy, reference)
    # m exp(-x) as one exponential: far below 0, m vanishes faster than exp(-x) grows (for tau < 1).
    exponential = (F.logsigmoid(x / tau) - x).exp()
    return (-x / tau).sigmoid() * -F.logsigmoid(x) + exponential


LOSSES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": dpo_loss,
    "hinge": hinge_loss,
    "robust": robust_loss,
    "exo_pair": exo_pair_loss,
    "nca_pair": nca_pair_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
}
