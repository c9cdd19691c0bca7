"""Notes that workers write while they train -> the terminal: phases, steps, and where they go on from."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.report.terminal import Terminal, beside
from pipeline.store import run_files
from pipeline.store.logs import row_of

LOOK_SECONDS = 1.0
STEP_KEYS = {"step", "loss", "perf/step_seconds", "perf/pairs_per_second"}  # of a row that is shown


@contextmanager
def following(terminal: Terminal, stage: str, metrics: Path, steps: int, attempts: Path) -> Iterator[None]:
    """Show the newest step or phase of the workers while the body runs.

    Args:
        metrics: their metrics.jsonl; the file that tells their phase is beside it.
        steps: of the whole training.
        attempts: the file to which each attempt adds the step that it goes on from.
    """
    with beside(partial(_follow, terminal, stage, metrics, steps, attempts)):
        yield


def _follow(terminal: Terminal, stage: str, metrics: Path, steps: int, attempts: Path, stop: threading.Event) -> None:
    began, first, told = time.time(), None, False
    while not stop.wait(LOOK_SECONDS):
        resumed = None if told else _resumed(attempts, began)
        if resumed is not None:
            told = True
            if resumed:
                terminal.note(f"{stage:<9} going on from step {resumed:,} of {steps:,}")
        said = _phase(metrics.with_name(run_files.STATUS), metrics, began)
        row = _last_step(metrics, began)
        if said is not None or row is None:
            at = (row["step"], steps) if row is not None else (None, None)
            terminal.live(stage, said or "starting workers", *at)
            continue
        done, rate = int(row["step"]), row["perf/step_seconds"]
        first = first or done
        # The first steps are slower than those that follow.
        left = (steps - done) * rate if done > first + 1 else None
        terminal.live(stage, _said(row, steps), done, steps, left)


def _said(row: dict[str, float], steps: int) -> str:
    shown = [f"step {int(row['step'])}/{steps}"]
    if row["loss"] is not None:  # null: it was not finite
        shown.append(f"loss {row['loss']:.4f}")
    shown.append(f"{row['perf/step_seconds']:.2g} s/step" if row["perf/step_seconds"] < 100 else "slow steps")
    if row.get("rewards/accuracies") is not None:
        shown.append(f"accuracy {row['rewards/accuracies']:.2f}")
    return "  ".join(shown)


def _last_step(metrics: Path, since: float) -> dict[str, float] | None:
    """Return the newest complete row of a training step, if the file changed since `since`; else None.

    The file may be read in the middle of a write.
    """
    try:
        if metrics.stat().st_mtime < since:
            return None
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").split("\n")[:-1]
    except FileNotFoundError:
        return None
    rows = (row_of(line) for line in reversed(lines))
    return next((row for row in rows if row is not None and row.keys() >= STEP_KEYS), None)


def _phase(path: Path, metrics: Path, since: float) -> str | None:
    """Return what the workers say that they are doing; None where they have done a step since, or never said so."""
    try:
        said_at = path.stat().st_mtime_ns
        if said_at < since * 1e9 or (metrics.exists() and metrics.stat().st_mtime_ns >= said_at):
            return None
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _resumed(attempts: Path, since: float) -> int | None:
    """Return the step that the workers go on from; None where they have not begun since `since`."""
    try:
        last = attempts.read_text(encoding="utf-8").split("\n")[-2:-1]
    except FileNotFoundError:
        return None
    try:
        row = json.loads(last[0]) if last else {}
    except ValueError:
        return None
    return int(row["from_step"]) if row.get("time", 0) >= since else None
