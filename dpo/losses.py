"""Preference losses: pure functions from log-probs to one term per pair. They neither reduce nor communicate.

B pairs. Log-probs are sums over a completion's tokens. beta scales the pull to the reference: a larger beta keeps the
policy closer to it. In the formulas, c and r are the log-ratios of the chosen and the rejected completion (policy minus
reference), h = c - r, s is the logistic function, e the label smoothing, |w| and |l| the token counts of the chosen and
the rejected completion.

A loss with the option `divergence` uses the scores of that f-divergence (`divergences.scores`) in place of c and r;
`divergence_alpha` applies to "alpha" only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo.divergences import LARGEST_EXPONENT, scores


class PairLogps(NamedTuple):
    """Summed log-probs of both completions of B pairs, and, where known, the number of scored tokens in each sum."""

    chosen: Tensor  # [B]
    rejected: Tensor  # [B]
    chosen_tokens: Tensor | None = None  # [B]
    rejected_tokens: Tensor | None = None  # [B]


class LogRatios(NamedTuple):
    """c and r of B pairs. The token counts are those of the policy's `PairLogps`."""

    chosen: Tensor  # [B]
    rejected: Tensor  # [B]


def log_ratios(policy: PairLogps, reference: PairLogps) -> LogRatios:
    """Return c and r: log policy - log reference of both sides."""
    return LogRatios(policy.chosen - reference.chosen, policy.rejected - reference.rejected)


def margin(policy: PairLogps, reference: PairLogps) -> Tensor:
    """Return h, [B]: log-ratio of chosen minus log-ratio of rejected (arXiv:2310.12036, eq. 17)."""
    c, r = log_ratios(policy, reference)
    return c - r


def per_token(chosen: Tensor, rejected: Tensor, policy: PairLogps) -> tuple[Tensor, Tensor]:
    """Divide both sides by the policy's token counts. An empty completion counts as one token, as in TRL."""
    if policy.chosen_tokens is None or policy.rejected_tokens is None:
        raise ValueError("this loss uses means over tokens, so PairLogps needs chosen_tokens and rejected_tokens")
    return chosen / policy.chosen_tokens.clamp(min=1), rejected / policy.rejected_tokens.clamp(min=1)


def score_margin(policy: PairLogps, reference: PairLogps, divergence: str, alpha: float) -> Tensor:
    """Return score of chosen minus score of rejected, [B]: h, generalised to f-divergences."""
    c, r = scores(*log_ratios(policy, reference), divergence, alpha)
    return c - r


def mean_score_margin(
    policy: PairLogps, reference: PairLogps, divergence: str, alpha: float, largest: float = LARGEST_EXPONENT
) -> Tensor:
    """Return c/|w| - r/|l| of the scores, [B]. The f-divergence is applied to the sums, before the division."""
    c, r = per_token(*scores(*log_ratios(policy, reference), divergence, alpha, largest), policy)
    return c - r


def smoothed_logistic(h: Tensor, label_smoothing: float) -> Tensor:
    """Return -(1 - e) log s(h) - e log s(-h)."""
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def dpo_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """Direct preference optimisation, [B]: eq. 7 of arXiv:2305.18290. -log s(beta h).

    label_smoothing > 0 is conservative DPO: the probability that chosen and rejected are swapped (eq. 3 of
    https://ericmitchell.ai/cdpo.pdf).
    """
    return smoothed_logistic(beta * score_margin(policy, reference, divergence, divergence_alpha), label_smoothing)


def sigmoid_norm_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """Length-normalised DPO, [B]: section 5 of arXiv:2411.15124. -log s(beta (c/|w| - r/|l|))."""
    return -F.logsigmoid(beta * mean_score_margin(policy, reference, divergence, divergence_alpha))


def hinge_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """RSO's hinge, [B]: max(0, 1 - beta h), section 3.3 of arXiv:2309.06657."""
    return torch.relu(1 - beta * score_margin(policy, reference, divergence, divergence_alpha))


def ipo_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """Identity preference optimisation, [B]: eq. 17 of arXiv:2310.12036, on means over tokens as in TRL.

    (c/|w| - r/|l| - 1/(2 beta))^2; beta is the paper's tau. Exponents of scores are clamped at 30, because the scores
    are squared.
    """
    return (mean_score_margin(policy, reference, divergence, divergence_alpha, largest=30.0) - 0.5 / beta) ** 2


def robust_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    label_smoothing: float,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """Provably robust DPO, [B]: eq. 11 of arXiv:2403.00409. Unbiased if a share e < 0.5 of the labels is wrong.

    [-(1 - e) log s(beta h) + e log s(-beta h)] / (1 - 2 e); it may be negative.
    """
    h = beta * score_margin(policy, reference, divergence, divergence_alpha)
    kept, flipped = -(1 - label_smoothing) * F.logsigmoid(h), -label_smoothing * F.logsigmoid(-h)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def exo_pair_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """EXO on pairs, [B]: eq. 16 of arXiv:2402.00856, the reverse KL to labels smoothed by e, 0 < e < 1.

    s(beta h) [log s(beta h) - log(1 - e)] + s(-beta h) [log s(-beta h) - log e].
    """
    h = beta * score_margin(policy, reference, divergence, divergence_alpha)
    for_chosen = F.logsigmoid(h) - math.log1p(-label_smoothing)
    for_rejected = F.logsigmoid(-h) - math.log(label_smoothing)
    return h.sigmoid() * for_chosen + (-h).sigmoid() * for_rejected


def nca_pair_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> Tensor:
    """Noise-contrastive alignment on pairs, [B]: eq. 10 of arXiv:2402.05369, with equal weights for both sides.

    -log s(beta c) - 1/2 log s(-beta c) - 1/2 log s(-beta r).
    """
    c, r = log_ratios(policy, reference)
    return -F.logsigmoid(beta * c) - 0.5 * F.logsigmoid(-beta * c) - 0.5 * F.logsigmoid(-beta * r)


def bco_pair_loss(policy: PairLogps, reference: PairLogps, *, beta: float, baseline: float = 0.0) -> Tensor:
    """Binary classifier optimisation on pairs, [B]: section 4 of arXiv:2404.04656; baseline is its reward shift.

    -log s(beta c - d) - log s(-(beta r - d)), where d is the `running_mean` of the rewards beta c and beta r. Current
    TRL uses d = 0.
    """
    c, r = log_ratios(policy, reference)
    return -F.logsigmoid(beta * c - baseline) - F.logsigmoid(baseline - beta * r)


def running_mean(mean: float, count: float, values: Tensor) -> tuple[float, float]:
    """Update a running mean of `count` values with new values; returns the exact mean and the count. Start at (0, 0).

    TRL's former baseline counted the mean reward of a batch as one value, before that batch's loss.
    """
    if not values.numel():
        return mean, count
    total = count + values.numel()
    return mean + float((values.detach().double() - mean).sum()) / total, total


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


def discopop_loss(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: float,
    tau: float = 0.05,
    divergence: str = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Tensor:
    """DiscoPOP's log-ratio modulated loss, [B]: eq. 5 of arXiv:2406.08414.

    (1 - m) (-log s(x)) + m exp(-x), with x = beta h and m = s(x / tau).
    """
    x = beta * score_margin(policy, reference, divergence, divergence_alpha)
    # Compute m exp(-x) as one exponential: far below 0, m vanishes faster than exp(-x) grows (for tau < 1).
    exponential = (F.logsigmoid(x / tau) - x).exp()
    return (-x / tau).sigmoid() * -F.logsigmoid(x) + exponential


def aot_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Alignment by optimal transport of paired data, [B]: arXiv:2406.05882. It couples the pairs of a step.

    -(1 - e) log s(beta d) - e log s(-beta d), where d is the sorted policy.chosen - policy.rejected of all B pairs
    minus the sorted reference.chosen - reference.rejected. B must therefore be the whole step, and term k belongs to
    position k of the sorted order, not to a pair.
    """
    ours, theirs = policy.chosen - policy.rejected, reference.chosen - reference.rejected
    return smoothed_logistic(beta * (ours.sort().values - theirs.sort().values), label_smoothing)


def aot_unpaired_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Alignment by optimal transport of unpaired data, [B]: arXiv:2406.05882. It couples the pairs of a step.

    Like `aot_loss`, but d is the sorted c of all B pairs minus their sorted r.
    """
    c, r = log_ratios(policy, reference)
    return smoothed_logistic(beta * (c.sort().values - r.sort().values), label_smoothing)


def sft_loss(policy: PairLogps, reference: PairLogps) -> Tensor:
    """Negative log-likelihood of the chosen completions, [B]: -log pi(w), the sum over its tokens. No reference.

    The mean over a step is a mean over its chosen tokens, not over its pairs (`PER_TOKEN`).
    """
    return -policy.chosen


def cpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Contrastive preference optimisation, [B]: L_prefer of arXiv:2401.08417. No reference.

    -log s(beta (log pi(w) - log pi(l))). Its other term, L_NLL, is `sft_loss`, which the caller adds.
    """
    return smoothed_logistic(beta * (policy.chosen - policy.rejected), label_smoothing)


def simpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float, gamma: float = 0.5) -> Tensor:
    """Simple preference optimisation, [B]: eq. 6 of arXiv:2405.14734. No reference.

    -log s(beta (log pi(w)/|w| - log pi(l)/|l|) - gamma). gamma is the paper's margin between rewards, and TRL's
    `simpo_gamma`: TRL subtracts gamma/beta from the log-probs and then multiplies by beta, which is the same.
    """
    chosen, rejected = per_token(policy.chosen, policy.rejected, policy)
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def log_odds(logp: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of a log-prob l = log p < 0: eq. 4 of arXiv:2403.07691.

    l - log1p(-e^l), with the logarithm computed as log(-expm1(l)), which is exact near 0. The value at l = 0
    would be infinite, so l is clamped to at most -eps of its dtype, and has no gradient there.
    """
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


def orpo_loss(policy: PairLogps, reference: PairLogps, *, odds_weight: float = 0.1) -> Tensor:
    """Odds ratio preference optimisation, [B]: eqs. 6 and 7 of arXiv:2403.07691. No reference.

    -m_w - odds_weight log s(log_odds(m_w) - log_odds(m_l)), where m_w and m_l are the mean log-probs per token and
    odds_weight is the paper's lambda. In TRL the first term also covers the prompt's tokens, and is one mean over the
    tokens of the batch.
    """
    chosen, rejected = per_token(policy.chosen, policy.rejected, policy)
    return -chosen - odds_weight * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": dpo_loss,
    "sigmoid_norm": sigmoid_norm_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "robust": robust_loss,
    "exo_pair": exo_pair_loss,
    "nca_pair": nca_pair_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
    "aot": aot_loss,
    "aot_unpaired": aot_unpaired_loss,
    "sft": sft_loss,
    "cpo": cpo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
}
