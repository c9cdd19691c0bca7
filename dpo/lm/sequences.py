"""Token sequences: a prompt with one completion. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class TokenSequence(NamedTuple):
    """One prompt with one completion; `mask` is true where a completion token is scored."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    mask: Sequence[bool]


def up_to_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """Return the ids up to and with the first end token; all ids if there is none.

    Only an answer's own ids should be given: a prompt may hold an end token.
    """
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in ends), ids)


def before_end(ids: list[int], eos_id: int) -> list[int]:
    """Return the ids before the first end token; all ids if there is none."""
    answer = up_to_end(ids, (eos_id,))
    return answer[:-1] if answer[-1:] == [eos_id] else answer
