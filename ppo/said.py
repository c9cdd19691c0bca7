"""Warnings that point to the user's line."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn, at the line of the first caller that is not in this package, nor in what makes its dataclasses."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in ("ppo", "pydantic"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
