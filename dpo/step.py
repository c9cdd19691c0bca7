"""Log-probs of one micro-batch -> loss terms and metrics, as sums. The caller runs the model and divides the sums."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dpo.lm.batch import ScoredTokens
from dpo.lm.logprobs import Logps, sequence_logps
from dpo.losses import LOSSES, LogRatios, PairLogps, running_mean
from dpo.metrics import preference_sums
from dpo.terms import PER_TOKEN, Mixture, compares_means, reward_scale


class Baseline(NamedTuple):
    """The mean and the number of all rewards so far."""

    mean: float = 0.0
    rewards: float = 0.0


class Coupling(NamedTuple):
    """The coupled terms of a whole step, computed in a first pass, as a contribution per pair."""

    values: Tensor  # [B]
    slopes: LogRatios  # [B] each: d loss / d summed log-prob of the policy

    def of(self, indices: list[int]) -> Coupling:
        return Coupling(self.values[indices], LogRatios(*(slope[indices] for slope in self.slopes)))


class StepSums(NamedTuple):
    """Sums over a micro-batch, which are divided once per step. Only `loss` has a gradient."""

    loss: Tensor
    metrics: dict[str, Tensor]


def pair_logps(batch: ScoredTokens, logps: Tensor, ld_alpha: float = 1.0) -> PairLogps:
    """Sum log-probs [S] per side. The sequences of the batch are the B chosen sides, then the B rejected sides.

    With ld_alpha (LD-DPO), tokens beyond the length of the shorter side have the weight ld_alpha, in policy and
    reference, as in TRL.
    """
    counts = PairLogps(*batch.counts.chunk(2))
    if ld_alpha != 1:
        # How long the sides are is known on the host; without it the CPU would wait for the device.
        per_token = partial(torch.repeat_interleave, repeats=batch.counts, output_size=sum(batch.on_host))
        shared = per_token(torch.minimum(counts.chosen, counts.rejected).repeat(2))
        starts = per_token(batch.counts.cumsum(0) - batch.counts)
        beyond = torch.arange(len(logps), device=logps.device) - starts >= shared
        logps = torch.where(beyond, ld_alpha * logps, logps)
    chosen, rejected = sequence_logps(batch, logps).chunk(2)
    return PairLogps(chosen, rejected, counts.chosen, counts.rejected)


def wpo_weights(batch: ScoredTokens, policy: Logps) -> Tensor:
    """Return WPO's weights, [B], without gradient (eq. 2 of arXiv:2406.11827).

    A weight is exp of the mean log-prob per token of both sides, where each token's log-prob is relative to the log of
    the probability that two draws agree.
    """
    assert policy.agreement is not None, "WPO needs the model asked with agreement=True"
    aligned = policy.logps.detach() - policy.agreement
    means = sequence_logps(batch, aligned) / batch.counts.clamp(min=1)
    chosen, rejected = means.chunk(2)
    return (chosen + rejected).exp()


def preference_step(
    batch: ScoredTokens,
    policy: Logps,
    reference: Tensor | None,
    mixture: Mixture,
    pairs_per_token: float = 1.0,
    coupling: Coupling | None = None,
) -> StepSums:
    """Return the terms of a preference loss, to be divided by the pairs of the step.

    Args:
        batch: its sequences are the B chosen sides, then the B rejected sides.
        policy: [S], in the order of the batch.
        reference: [S]; None if no term needs it.
        mixture: the losses to sum.
        pairs_per_token: pairs of the step divided by its scored chosen tokens; turns a mean over tokens (the sft term)
            into a mean over pairs.
        coupling: the part of `couple`'s result for these pairs, if a term is coupled.
    """
    reference = torch.zeros_like(policy.logps) if reference is None else reference
    sums_by_alpha = {
        alpha: (pair_logps(batch, policy.logps, alpha), pair_logps(batch, reference, alpha))
        for alpha in {1.0, *(term.ld_alpha for term in mixture)}
    }
    ours, theirs = sums_by_alpha[1.0]
    total = torch.zeros((), dtype=torch.float64, device=policy.logps.device)
    for term in mixture:
        if not term.coupled:
            share = pairs_per_token if term.kind in PER_TOKEN else 1.0
            terms = LOSSES[term.kind](*sums_by_alpha[term.ld_alpha], **term.options)  # [B]
            weights = wpo_weights(batch, policy) if term.wpo else 1.0
            total = total + term.weight * share * (terms * weights).sum()
    value = total.detach()
    if coupling is not None:
        # The slopes are those of the whole step's loss; the values are the contributions of these pairs.
        chosen, rejected = coupling.slopes
        total = total + (chosen * ours.chosen).sum() + (rejected * ours.rejected).sum()
        value = value + coupling.values.sum()
    sums = {"loss": value, **preference_sums(ours, theirs, beta=reward_scale(mixture), means=compares_means(mixture))}
    return StepSums(total, sums)


@torch.enable_grad()
def couple(policy: PairLogps, reference: PairLogps, mixture: Mixture, baseline: Baseline) -> tuple[Coupling, Baseline]:
    """Return the coupled terms of a whole step from its log-probs, [B] without gradient, and the updated baseline.

    The baseline includes the step's rewards before the loss uses it, as in TRL.
    """
    leaves = PairLogps(
        policy.chosen.detach().double().requires_grad_(),
        policy.rejected.detach().double().requires_grad_(),
        *policy[2:],
    )
    values = torch.zeros_like(leaves.chosen)
    for term in mixture:
        if not term.coupled:
            continue
        options = dict(term.options)
        if term.running_baseline:
            rewards = torch.cat([policy.chosen - reference.chosen, policy.rejected - reference.rejected])
            baseline = Baseline(*running_mean(*baseline, float(options["beta"]) * rewards.detach()))
            options["baseline"] = baseline.mean
        values = values + term.weight * LOSSES[term.kind](leaves, reference, **options)
    slopes = torch.autograd.grad(values.sum(), [leaves.chosen, leaves.rejected])
    return Coupling(values.detach(), LogRatios(*slopes)), baseline


def sft_step(policy: Logps) -> StepSums:
    """Return the negative log-likelihood of the scored tokens, [S], as a sum."""
    total = -policy.logps.sum()
    return StepSums(total, {"loss": total.detach()})
