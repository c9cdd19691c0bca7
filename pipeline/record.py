"""Counts and times of a run's stages. `run.py` alone writes them, from the results of the stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from pipeline.place import Place

T = TypeVar("T")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Made(Generic[T]):
    """The return value of a stage: its result for later stages, its line on the terminal, and its counts."""

    result: T
    message: str  # shown on the stage's line of the terminal
    counts: dict[str, Any] = field(default_factory=dict)  # of summary.json, by name
    peak_bytes: int = 0  # of its largest process


@dataclass
class Record:
    """Counts and times of the stages so far."""

    counts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    def stage(
        self,
        stage: Callable[Concatenate[Place, Arguments], Made[T]],
        place: Place,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> T:
        """Run a stage under its function's name: announce it, time it, keep what it counted; returns its result."""
        name, began = stage.__name__, time.monotonic()
        place.terminal.begin()
        made = stage(place, *args, **kwargs)
        self.seconds[name] = round(time.monotonic() - began, 3)
        self.counts |= made.counts
        self.peak_bytes = max(self.peak_bytes, made.peak_bytes)
        place.terminal.end(name, made.message, self.seconds[name])
        return made.result
