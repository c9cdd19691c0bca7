"""FLOP of a language model, counted from its shape and from what is computed of its sequences. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo.lm.model_config import Shape


class Work(NamedTuple):
    """The work of computing some sequences."""

    tokens: float  # positions
    attention: float  # pairs of a query and a key, times 2: n squared for a causal call of n tokens
    head: float  # positions given to the head


def shared_work(prompt: Any, completions: Sequence[Any], scored: float | None = None) -> Work:
    """Count the useful work: a prompt once for its completions, no pair of tokens that do not see each other.

    Args:
        prompt: tokens: a number, or an array with one entry per prompt.
        completions: tokens of each completion of a prompt, numbers or arrays like `prompt`.
        scored: completion tokens that are given to the head; None: all of them.
    """
    before = np.asarray(prompt, float)
    after = [np.asarray(completion, float) for completion in completions]
    squares = sum((before + tail) ** 2 for tail in after) - (len(after) - 1) * before**2
    tails = float(np.sum(sum(after)))
    return Work(float(np.sum(before)) + tails, float(np.sum(squares)), tails if scored is None else scored)


def forward_flops(shape: Shape, work: Work) -> float:
    """Count a forward pass."""
    return sum(_parts(shape, work))


def training_flops(shape: Shape, work: Work, adapter: float | None = None) -> float:
    """Count forward and backward pass: three times a forward pass.

    Frozen weights have no gradient, so with an adapter it is twice, and three times the adapter's own.

    Attention counts 3.5 times, since the scores are never kept; what is computed again by choice counts nothing: the
    logits of the head, layers under activation checkpointing.

    Args:
        adapter: parameters of the adapter that alone is trained; None: all weights are.
    """
    linear, attention, head = _parts(shape, work)
    if adapter is not None:
        return 2 * (linear + head) + 3.5 * attention + 3 * 2 * adapter * work.tokens
    return 3 * (linear + head) + 3.5 * attention


def _parts(shape: Shape, work: Work) -> tuple[float, float, float]:
    """Count a forward pass of the layers' matrices, of attention and of the head."""
    linear = 2 * shape.body * work.tokens
    attention = 2 * shape.query * shape.layers * work.attention  # scores and values: 4 FLOP a channel and pair
    return linear, attention, 2 * shape.hidden * shape.vocabulary * work.head
