"""Rewards of answers -> advantages, without values: answers to one query are each other's baseline.

Pure functions. Groups, the answers to one query, are on one rank; what is said of a batch is over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ppo.rewards import Advantages
from ppo.statistics import Reduce, alone, masked_moments

AdvantageEstimator = Literal["gae", "rloo", "grpo"]
RewardScale = Literal["group", "batch", "none"]
EPSILON = 1e-4  # beside a standard deviation, as in TRL
OF_VALUES = ("ppo/val/", "ppo/returns/", "ppo/loss/value")  # statistics that mean nothing without values


def groups_of(queries: Sequence[Tensor]) -> Tensor:
    """Number the queries by their tokens: B tensors (length,) -> (B,), equal numbers for equal queries."""
    numbers: dict[tuple[int, ...], int] = {}
    return torch.tensor([numbers.setdefault(tuple(query.tolist()), len(numbers)) for query in queries])


def answer_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """The reward of each answer, (B, T) -> (B,): its score less the penalties of its tokens, undiscounted."""
    return rewards.where(mask.bool(), 0.0).sum(-1)


def rloo_advantages(rewards: Tensor, groups: Tensor, normalize: bool = False, reduce: Reduce = alone) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024): each reward less the mean of the others of its group.

    Args:
        rewards: (B,) one an answer.
        groups: (B,) whole numbers, equal for answers to one query.
        normalize: scale the advantages of the batch to mean 0 and standard deviation 1.
        reduce: adds up over ranks.

    Returns:
        (B,) advantages, in the dtype of the rewards; of whole numbers in float32.

    Raises:
        ValueError: a group of one answer, which has no baseline.
    """
    index, count = _counted(groups)
    given = rewards.double()
    sums = _sums(given, index)
    advantages = given - (sums[index] - given) / (count[index] - 1)
    if normalize:
        mean, deviation = _moments(advantages, reduce)
        advantages = (advantages - mean) / (deviation + EPSILON)
    return advantages.to(torch.promote_types(rewards.dtype, torch.float32))


def grpo_advantages(rewards: Tensor, groups: Tensor, scale: RewardScale = "group", reduce: Reduce = alone) -> Tensor:
    """Group-relative advantages (Shao et al. 2024): each reward less the mean of its group, scaled.

    Args:
        rewards: (B,) one an answer.
        groups: (B,) whole numbers, equal for answers to one query.
        scale: divide by the standard deviation of the group's rewards ("group") or of all rewards of the batch
            ("batch"), each divided by the count less one, plus 1e-4; or not at all ("none").
        reduce: adds up over ranks.

    Returns:
        (B,) advantages, in the dtype of the rewards; of whole numbers in float32.

    Raises:
        ValueError: a group of one answer, whose advantage would always be 0; another scale.
    """
    index, count = _counted(groups)
    given = rewards.double()
    centred = given - (_sums(given, index) / count)[index]
    if scale == "group":
        variance = _sums(centred.square(), index) / (count - 1)
        centred = centred / (variance.sqrt()[index] + EPSILON)
    elif scale == "batch":
        centred = centred / (_moments(given, reduce)[1] + EPSILON)
    elif scale != "none":
        raise ValueError(f'scale_rewards = {scale!r} must be "group", "batch" or "none"')
    return centred.to(torch.promote_types(rewards.dtype, torch.float32))


def estimate(config: Any, queries: Sequence[Tensor], rewards: Tensor, mask: Tensor, reduce: Reduce) -> Advantages:
    """Give every token the advantage of its answer, (B, T); values and returns are 0.

    `config` is a PPOConfig with `advantage_estimator` "rloo" or "grpo"; `rewards` are those of `ppo.rewards`.
    """
    each, groups = answer_rewards(rewards, mask), groups_of(queries).to(rewards.device)
    if config.advantage_estimator == "rloo":
        advantages = rloo_advantages(each, groups, config.normalize_advantages, reduce)
    else:
        advantages = grpo_advantages(each, groups, config.scale_rewards, reduce)
    nothing = torch.zeros_like(rewards)
    return Advantages(nothing, advantages[:, None].where(mask.bool(), 0.0), nothing)


def repeating(collate: Callable[[list[Any]], Any] | None, times: int) -> Callable[[list[Any]], Any] | None:
    """A collator that gives each sample so many times, one behind the other; None stands for torch's own."""
    if times == 1:
        return collate
    whole = collate or default_collate
    return lambda rows: whole([row for row in rows for _ in range(times)])


def without_values(stats: dict[str, Any]) -> dict[str, Any]:
    """Leave out the statistics of a step that are about values."""
    return {name: value for name, value in stats.items() if not name.startswith(OF_VALUES)}


def check_settings(config: Any) -> None:
    """Raise a ValueError for settings of a PPOConfig that its estimator cannot honour."""
    if config.batch_size % config.answers_per_prompt:
        raise ValueError(
            f"batch_size = {config.batch_size} must be a multiple of answers_per_prompt = {config.answers_per_prompt}"
        )
    if config.advantage_estimator == "gae":
        return
    for name, neutral in (("gamma", 1.0), ("whiten_rewards", False)):
        if getattr(config, name) != neutral:
            raise ValueError(
                f"{name} = {getattr(config, name)} is about rewards of tokens, and advantage_estimator = "
                f"{config.advantage_estimator!r} knows one reward an answer: leave {name} at {neutral}"
            )


def _counted(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Each answer's group as an index, (B,), and how many answers each group has."""
    _, index, count = torch.unique(groups, return_inverse=True, return_counts=True)
    alone_in_it = (count[index] < 2).nonzero().flatten().tolist()
    if alone_in_it:
        raise ValueError(
            f"queries {alone_in_it[:8]} have only one answer in the batch: without a value head an answer is compared "
            "with other answers to its query. Give every query at least twice (answers_per_prompt does so for a data "
            'set), or set advantage_estimator = "gae"'
        )
    return index, count


def _sums(values: Tensor, index: Tensor) -> Tensor:
    return values.new_zeros(int(index.max()) + 1).index_add(0, index, values)


def _moments(values: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, divided by the count less one, of all ranks."""
    mean, variance, count = masked_moments(values, torch.ones_like(values), reduce)
    return mean, (variance * count / (count - 1)).sqrt()
