"""Why a row is not used."""

from __future__ import annotations

from typing import NamedTuple


class Rejection(NamedTuple):
    """The reason in words, and the kind that such rows are counted under. Whoever read the row adds where it stood."""

    reason: str
    kind: str = "no pair"
