"""What a check found: how bad, in which rows, and what to do about it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

SEVERITIES = ("note", "warning", "error")


class Finding(NamedTuple):
    """`name` never changes, so that scripts may look for it; `examples` say where, and how the row reads."""

    name: str
    severity: str
    title: str
    detail: str
    fix: str
    number: int | None = None
    share: float | None = None  # of the pairs that could have it
    examples: tuple[str, ...] = ()


def worst(findings: list[Finding]) -> str | None:
    """The highest severity among them."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=None)


def graded(share: Any, warning: float, error: float = 2.0) -> str:
    """How bad a share of the pairs is, or the share of an array that is true."""
    share = float(np.mean(share)) if np.size(share) else 0.0
    return "error" if share >= error else "warning" if share >= warning else "note"
