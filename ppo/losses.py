"""The clipped losses of PPO (Schulman et al. 2017, eq. 7), and what is to be known of a mini-batch.

Losses come as sums over tokens. Whoever calls divides them once, by the tokens of the whole optimizer step: then
neither accumulation nor the number of ranks changes them. TRL averages the means of micro-batches, so that the tokens
of short ones weigh more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpo.lm.head import target_logps


def clip_by_value(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Clip to bounds that may be tensors."""
    return torch.maximum(torch.minimum(x, torch.as_tensor(high).to(x)), torch.as_tensor(low).to(x))


def logprobs_from_logits(logits: Tensor, labels: Tensor | None, gather: bool = True) -> Tensor:
    """Log-probs of the labels, (B, T, V) and (B, T) -> (B, T); with `gather=False` of all tokens, (B, T, V).

    In at least float32, whatever the logits are.
    """
    if not gather:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if labels is None:
        raise ValueError("labels = None: give the tokens whose log-probs are wanted, or gather=False for all")
    return target_logps(logits.flatten(0, 1), labels.flatten()).logps.view(labels.shape)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of the next token in nats, (..., V) -> (...)."""
    logps = logprobs_from_logits(logits, None, gather=False)
    return -(logps.exp() * logps.nan_to_num(neginf=0.0)).sum(-1)


class Sums(NamedTuple):
    """The share of a mini-batch: two losses with gradients, and its statistics."""

    policy: Tensor
    value: Tensor
    numbers: Tensor  # [len(NUMBERS)] float64, without gradients; to be added up over ranks
    ratio: Tensor  # (B, T)


NUMBERS = (
    "tokens", "policy", "value", "entropy", "approxkl", "policykl", "policy_clipped", "value_clipped",
    "advantages", "ratio", "error", "vpred", "returns", "returns_squared", "values", "values_squared",
)  # fmt: skip


def loss_sums(
    old_logprobs: Tensor,
    values: Tensor,
    logits: Tensor | None,
    vpreds: Tensor,
    logprobs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    returns: Tensor,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    entropy: Tensor | None = None,
) -> Sums:
    """All (B, T) but the logits, (B, T, V). Only masked tokens count, whatever stands at the others.

    Logits are there for the statistic of entropy alone; None where `entropy` is given.
    """
    inside = mask.bool()
    old, new = old_logprobs[inside], logprobs[inside]
    before, now, wanted, gain = values[inside], vpreds[inside], returns[inside], advantages[inside]

    clipped = clip_by_value(now, before - cliprange_value, before + cliprange_value)
    free_error, clipped_error = (now - wanted).square(), (clipped - wanted).square()
    value = 0.5 * torch.maximum(free_error, clipped_error).sum()

    ratio = (new - old).exp()
    free_loss, clipped_loss = -gain * ratio, -gain * ratio.clamp(1 - cliprange, 1 + cliprange)
    policy = torch.maximum(free_loss, clipped_loss).sum()

    with torch.no_grad():
        if entropy is None:
            assert logits is not None, "loss_sums needs logits or entropy"
            entropies = entropy_from_logits(logits[inside])
        else:
            entropies = entropy[inside]
        given = {
            "tokens": torch.ones_like(new),
            "policy": torch.maximum(free_loss, clipped_loss),
            "value": 0.5 * torch.maximum(free_error, clipped_error),
            "entropy": entropies,
            "approxkl": 0.5 * (new - old).square(),
            "policykl": old - new,
            "policy_clipped": clipped_loss > free_loss,
            "value_clipped": clipped_error > free_error,
            "advantages": gain,
            "ratio": ratio,
            "error": free_error,
            "vpred": now,
            "returns": wanted,
            "returns_squared": wanted.double().square(),
            "values": before,
            "values_squared": before.double().square(),
        }
        numbers = torch.stack([given[name].double().sum() for name in NUMBERS])
        whole = torch.zeros_like(old_logprobs).masked_scatter(inside, ratio.to(old_logprobs.dtype))
    return Sums(policy, value, numbers, whole)


def means(numbers: Tensor) -> dict[str, float]:
    """`Sums.numbers`, added up over whatever ranks and mini-batches there are -> the mean a token of each."""
    total = dict(zip(NUMBERS, numbers.tolist(), strict=True))
    return {name: value / max(total["tokens"], 1.0) for name, value in total.items()}


def statistics(numbers: Tensor, vf_coef: float) -> dict[str, float]:
    """`Sums.numbers` -> statistics under TRL's names. Variances are divided by the count less one; of one token 0."""
    count, mean = float(numbers[0]), means(numbers)
    bessel = count / max(count - 1, 1.0)
    return {
        "loss/policy": mean["policy"],
        "loss/value": mean["value"],
        "loss/total": mean["policy"] + vf_coef * mean["value"],
        "policy/entropy": mean["entropy"],
        "policy/approxkl": mean["approxkl"],
        "policy/policykl": mean["policykl"],
        "policy/clipfrac": mean["policy_clipped"],
        "policy/advantages_mean": mean["advantages"],
        "returns/mean": mean["returns"],
        "returns/var": max(0.0, mean["returns_squared"] - mean["returns"] ** 2) * bessel,
        "val/vpred": mean["vpred"],
        "val/error": mean["error"],
        "val/clipfrac": mean["value_clipped"],
        "val/mean": mean["values"],
        "val/var": max(0.0, mean["values_squared"] - mean["values"] ** 2) * bessel,
    }
