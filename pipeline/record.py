"""Counts and times of a run's stages. `run.py` alone writes them, from the results of the stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from dpo.lm.whole_folder import read_json, to_json, write_atomically
from pipeline.place import Place
from pipeline.store import run_files

T = TypeVar("T")
SCORED, REUSED = "sequences_scored", "sequences_reused"
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
    earlier: dict[str, Any] = field(default_factory=dict)  # the same, of earlier runs of this name
    kept: Path | None = None  # the file that tells a later run of this name; None: nothing is kept

    @classmethod
    def of(cls, run_dir: Path, anew: bool) -> Record:
        """The record of a run: what earlier ones of its name took counts as well, unless it is the first."""
        path = run_dir / run_files.STAGES
        if anew:
            path.unlink(missing_ok=True)
        found = read_json(path)
        if found is None and not anew:  # of a version that kept only the summary
            summary = read_json(run_dir / run_files.SUMMARY) or {}
            found = {**summary, "peak_bytes": summary.get("peak_rss_bytes", 0)}
        known = {key: value for key, value in (found or {}).items() if key in ("seconds", "peak_bytes", SCORED)}
        return cls(earlier=known, kept=path)

    def stage(
        self,
        stage: Callable[Concatenate[Place, Arguments], Made[T]],
        place: Place,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> T:
        """Run a stage under its function's name: announce it, time it, keep what it counted; returns its result."""
        name, began = stage.__name__, time.monotonic()
        place.terminal.begin(name)
        made = stage(place, *args, **kwargs)
        self.seconds[name] = round(time.monotonic() - began, 3)
        self.counts |= made.counts
        self.peak_bytes = max(self.peak_bytes, made.peak_bytes)
        place.terminal.end(name, made.message, self.seconds[name])
        if self.kept is not None:
            self._add_earlier(self.kept, name, made.counts)
        return made.result

    def _add_earlier(self, path: Path, name: str, counts: dict[str, Any]) -> None:
        """Add what a stage took in earlier runs of this name, and keep the sum for later ones."""
        self.seconds[name] = round(self.seconds[name] + self.earlier.get("seconds", {}).get(name, 0.0), 3)
        self.peak_bytes = max(self.peak_bytes, self.earlier.get("peak_bytes", 0))
        if SCORED in counts:  # what an earlier run scored is not reused from others
            total = counts[SCORED] + counts[REUSED]
            scored = min(total, counts[SCORED] + self.earlier.get(SCORED, 0))
            self.counts |= {SCORED: scored, REUSED: total - scored}
        known = {key: self.counts[key] for key in (SCORED,) if key in self.counts}
        seconds = {**self.earlier.get("seconds", {}), **self.seconds}
        sums = {**self.earlier, **known, "seconds": seconds, "peak_bytes": self.peak_bytes}
        write_atomically(path, to_json(sums, indent=1) + "\n")
