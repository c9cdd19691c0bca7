"""Metrics of a preference step, as sums over pairs. The caller adds up micro-batches and ranks, then divides."""

from __future__ import annotations

from torch import Tensor

from dpo.losses import PairLogps, log_ratios, per_token


def preference_sums(policy: PairLogps, reference: PairLogps, *, beta: float, means: bool = False) -> dict[str, Tensor]:
    """Return sums over B pairs, scalars without gradient, under TRL's metric names.

    Rewards are beta times the log-ratio (section 4 of arXiv:2305.18290). A tie counts as wrong in the accuracy.

    Args:
        beta: factor from log-ratios to rewards.
        means: divide log-ratios by token counts, for losses that compare means.
    """
    policy = policy._replace(chosen=policy.chosen.detach(), rejected=policy.rejected.detach())
    ratios = log_ratios(policy, reference)
    chosen, rejected = (beta * ratio for ratio in (per_token(*ratios, policy) if means else ratios))
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": (chosen - rejected).sum(),
        "rewards/accuracies": (chosen > rejected).sum(),
        "logps/chosen": policy.chosen.sum(),
        "logps/rejected": policy.rejected.sum(),
    }
