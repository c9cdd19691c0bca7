"""The terminal output: one line per stage, and a live line while a stage runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.errors import visible
from pipeline.store import run_files
from pipeline.store.logs import row_of

STATUS_SECONDS = 60.0  # for which a status is shown; workers that were killed leave their last one behind
STEP_KEYS = {"step", "loss", "perf/step_seconds", "perf/pairs_per_second"}  # of a row that is shown
QUIET_SECONDS = 10.0  # between two progress lines, if the output is not a terminal


class Terminal:
    def __init__(self) -> None:
        self.console = Console(stderr=False, highlight=False, soft_wrap=True)
        self._spoke_at = 0.0
        self._shown = ""

    def begin(self) -> None:
        """Note that a stage begins. Off a terminal, its progress is not shown for the first QUIET_SECONDS."""
        self._spoke_at = time.monotonic()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(Text(visible(text)))

    def live(self, stage: str, text: str) -> None:
        """Show progress. On a terminal it replaces the line before; elsewhere a line is printed every QUIET_SECONDS."""
        if self.console.is_terminal:
            line = Text(f"{stage:<9} {visible(text)}")
            self.console.print(line, end="\r", overflow="crop", no_wrap=True, soft_wrap=False)
        elif time.monotonic() - self._spoke_at > QUIET_SECONDS and text != self._shown:
            self.console.print(Text(f"{stage:<9} {visible(text)}"))
            self._spoke_at, self._shown = time.monotonic(), text

    def end(self, stage: str, message: str, seconds: float) -> None:
        """Print the final line of a stage."""
        self.clear()
        self.console.print(Text(f"{stage:<9} {visible(message)}").append(f"  {seconds:.1f} s", "dim"))

    def clear(self) -> None:
        """Remove the live line from a terminal."""
        if self.console.is_terminal:
            self.console.print(" " * (self.console.width - 1), end="\r")

    @contextmanager
    def following(self, stage: str, metrics: Path, steps: int) -> Iterator[None]:
        """Show the newest row of a metrics.jsonl, with rate and time left, while the body runs."""
        with beside(partial(self._follow, stage, metrics, steps)):
            yield

    def _follow(self, stage: str, metrics: Path, steps: int, stop: threading.Event) -> None:
        began, first = time.time(), None
        while not stop.wait(1.0):
            row, status = _last_step(metrics, began), _status(metrics.with_name(run_files.STATUS))
            if status is not None:
                self.live(stage, status)
                continue
            if row is None:
                self.live(stage, "starting workers")
                continue
            done, rate = row["step"], row["perf/step_seconds"]
            first = first or done
            shown = [f"step {done}/{steps}"]
            if row["loss"] is not None:  # null: it was not finite
                shown.append(f"loss {row['loss']:.4f}")
            if row.get("rewards/accuracies") is not None:
                shown.append(f"accuracy {row['rewards/accuracies']:.2f}")
            shown.append(f"{row['perf/pairs_per_second']:.1f} pairs/s")
            if done > first + 1:  # the first steps are slower than those that follow
                shown.append(f"{_clock((steps - done) * rate)} left")
            self.live(stage, "  ".join(shown))


@contextmanager
def beside(show: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `show` in a thread while the body runs; the event tells it to end."""
    stop = threading.Event()
    thread = threading.Thread(target=show, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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


def _status(path: Path) -> str | None:
    """Return what the workers say that they are doing, unless they stopped saying it."""
    try:
        fresh = time.time() - path.stat().st_mtime < STATUS_SECONDS
        return path.read_text(encoding="utf-8").strip() if fresh else None
    except FileNotFoundError:
        return None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
