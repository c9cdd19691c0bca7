"""Log-probs of one micro-batch -> loss terms and metrics, as sums. The caller owns the model and the division."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dpo.batch import PairBatch
from dpo.logprobs import sequence_logps
from dpo.losses import LOSSES, PairLogps
from dpo.metrics import preference_sums


class StepSums(NamedTuple):
    """`loss` carries the gradient; every entry is a sum over the micro-batch, to be divided once a step."""

    loss: Tensor
    metrics: dict[str, Tensor]


def pair_logps(logps: Tensor) -> PairLogps:
    """[2B, T-1] token log-probs of a PairBatch -> sums of its chosen and rejected sides."""
    return PairLogps(*PairBatch.split(sequence_logps(logps)))


def preference_step(
    policy_logps: Tensor, reference_logps: Tensor, loss: str, loss_options: dict[str, float]
) -> StepSums:
    """Terms of a preference loss.

    Args:
        policy_logps, reference_logps: [2B, T-1], laid out by `logprobs.token_logps`.
        loss: a key of LOSSES.
        loss_options: that function's keyword arguments; `beta` among them.
    """
    policy, reference = pair_logps(policy_logps), pair_logps(reference_logps)
    terms = LOSSES[loss](policy, reference, **loss_options)  # [B]
    sums = {"loss": terms.detach().sum(), **preference_sums(policy, reference, beta=loss_options["beta"])}
    return StepSums(terms.sum(), sums)


def sft_step(policy_logps: Tensor) -> StepSums:
    """Negative log-likelihood of every scored token: [N, T-1] -> its sum."""
    total = -policy_logps.sum()
    return StepSums(total, {"loss": total.detach()})
