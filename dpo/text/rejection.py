"""The reason why a row is not used."""

from __future__ import annotations

from typing import NamedTuple


class Rejection(NamedTuple):
    """A reason in words, and the kind under which such rows are counted. The caller adds the place of the row."""

    reason: str
    kind: str = "no pair"
