"""From scores and log-probs to one reward a token, and from rewards to advantages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppo.kl import KLPenalty, kl_penalty
from ppo.statistics import Reduce, alone, masked_whiten


class Rewards(NamedTuple):
    """Each (B, T). Outside the mask `rewards` is not masked: whoever sums must."""

    rewards: Tensor  # the penalty, plus the score at the last masked token
    non_score: Tensor  # the penalty: minus coefficient times KL
    kl: Tensor  # the estimate itself


def compute_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float, kind: KLPenalty = "kl"
) -> Rewards:
    """(B,) scores, log-probs of policy and reference as `kl_penalty` takes them, (B, T) mask.

    Raises:
        ValueError: a row without a masked token.
    """
    return rewards_of(scores, kl_penalty(logprobs, ref_logprobs, kind), mask, kl_coef)


def rewards_of(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Rewards:
    """(B,) scores, (B, T) KL of every token, (B, T) mask.

    Raises:
        ValueError: a row without a masked token.
    """
    empty = (mask.sum(-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"responses {empty} have no token that counts: their score has no place to go")
    non_score = -kl_coef * kl
    last = mask.shape[-1] - 1 - mask.bool().flip(-1).int().argmax(-1)
    rewards = non_score.scatter_add(-1, last[:, None], scores[:, None].to(non_score.dtype))
    return Rewards(rewards, non_score, kl)


class Advantages(NamedTuple):
    """Each (B, T), and 0 outside the mask."""

    values: Tensor
    advantages: Tensor  # whitened over the batches of all ranks
    returns: Tensor


def compute_advantages(
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = False,
    reduce: Reduce = alone,
) -> Advantages:
    """Generalized advantage estimation over the masked tokens (Schulman et al. 2016, eq. 16); all (B, T).

    Tokens that the mask leaves out inside a response (what a tool wrote) are stepped over: the state before them is
    followed by the state after them. TRL takes them for states of value 0.
    """
    inside = mask.bool()
    values, rewards = values.where(inside, 0.0), rewards.where(inside, 0.0)
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantage = following = torch.zeros_like(values[:, 0])
    backwards = []
    for t in reversed(range(values.shape[1])):
        counts = inside[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = torch.where(counts, delta + gamma * lam * advantage, advantage)
        following = torch.where(counts, values[:, t], following)
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1).where(inside, 0.0)
    return Advantages(values, masked_whiten(advantages, mask, reduce=reduce), advantages + values)
