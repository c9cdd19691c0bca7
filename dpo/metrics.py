"""What a preference step reports, as sums over pairs: whoever adds them up over micro-batches and ranks divides."""

from __future__ import annotations

from torch import Tensor

from dpo.losses import PairLogps, log_ratios, per_token


def preference_sums(policy: PairLogps, reference: PairLogps, *, beta: float, means: bool = False) -> dict[str, Tensor]:
    """Sums over B pairs, scalars without gradient, under TRL's metric names.

    rewards are beta times the log-ratio (section 4 of arXiv:2305.18290); a tie counts as wrong in the accuracy.
    `means` takes the log-ratio's mean over tokens, for losses that compare means.
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
