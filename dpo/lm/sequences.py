"""Token sequences: a prompt with one completion. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TokenSequence(NamedTuple):
    """One prompt with one completion; `mask` is true where a completion token is scored."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    mask: Sequence[bool]


def before_end(ids: list[int], eos_id: int) -> list[int]:
    """Return the ids before the first end token."""
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
