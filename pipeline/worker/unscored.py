"""The sequences that a group of workers is to score, and its answer. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class Unscored(NamedTuple):
    """Token parts with sequences that the cache lacks."""

    parts: list[str]
    cache: str  # folder or URI of the model's log-probs
    batch_sequences: int  # sequences that a rank scores before it writes them as one part of the cache
    batch_tokens: int  # tokens of one forward pass, a shared prompt counted once and padding included


class Scored(NamedTuple):
    """The answer of a group that has scored all of them."""

    peak_bytes: int  # resident, of the largest worker
    unshared: str | None  # why every sequence repeated its prompt; None: prompts were shared
