"""The terminal output: lines that stay, and below them what goes on now, with a bar, a clock and the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from pipeline.errors import visible

QUIET_SECONDS = 10.0  # between two progress lines, if the output is not a terminal
WIDEST_BAR = 24  # columns
SPARE = 6  # columns at the end of a line, where the terminal shows ^C without a new line


class Terminal:
    def __init__(self) -> None:
        self.console = Console(stderr=False, highlight=False)
        self.console.soft_wrap = not self.console.is_terminal  # a terminal's lines are wrapped at blanks
        self._live: _Live | None = None
        self._spoke_at = 0.0
        self._shown = ""

    @contextmanager
    def showing(self, stages: Sequence[str] = (), others: bool = False) -> Iterator[None]:
        """Show what goes on at the bottom of a terminal while the body runs; nothing of it stays behind.

        Args:
            stages: all that will run, for the bar of the whole run.
            others: whether other libraries print lines, which then go above.
        """
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        self._live = _Live(self.console, stages, others)
        try:
            with self._live.progress:
                yield
        finally:
            self._live = None

    def begin(self, stage: str) -> None:
        """Note that a stage begins. Off a terminal, its progress is not shown for the first QUIET_SECONDS."""
        self._spoke_at = time.monotonic()
        if self._live is not None:
            self._live.begin(stage)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(Text(visible(text)))

    def live(
        self,
        stage: str,
        text: str,
        done: float | None = None,
        total: float | None = None,
        left: float | None = None,
    ) -> None:
        """Show what goes on. Elsewhere than on a terminal a line is printed every QUIET_SECONDS.

        Args:
            done: how much of `total`, for the bar; None: nobody knows.
            left: seconds until all is done, where that is better known than by the pace.
        """
        if self._live is not None:
            self._live.show(stage, visible(text), done, total, left)
        elif not self.console.is_terminal and time.monotonic() - self._spoke_at > QUIET_SECONDS and text != self._shown:
            more = f"  {clock(left)} left" if left is not None else ""
            self.console.print(Text(f"{stage:<9} {visible(text)}{more}"))
            self._spoke_at, self._shown = time.monotonic(), text

    def end(self, stage: str, message: str, seconds: float) -> None:
        """Print the final line of a stage."""
        if self._live is not None:
            self._live.end()
        self.console.print(Text(f"{stage:<9} {visible(message)}").append(f"  {seconds:.1f} s", "dim"))


class _Lines(Progress):
    """Lines that leave the last columns empty."""

    def __init__(self, *columns: str | ProgressColumn, console: Console, **options: Any):
        self.on = console  # a Progress asks for its table before it has a console
        super().__init__(*columns, console=console, **options)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        table = super().make_tasks_table(tasks)
        table.width = max(1, self.on.width - SPARE)
        return table


class _Live:
    """Two lines: what goes on now, and the whole run."""

    def __init__(self, console: Console, stages: Sequence[str], others: bool):
        self.stages, self.number = list(stages), 0
        width = max(6, min(WIDEST_BAR, (console.width - 40) // 4))
        self.progress = _Lines(
            TextColumn("{task.fields[stage]:<9}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(width, table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            _Clock(),
            console=console,
            transient=True,
            expand=True,
            refresh_per_second=4,
            redirect_stdout=True,
            redirect_stderr=others,
        )
        self.now = self._add(self.stages[0] if self.stages else "", "looking at what is given")
        self.whole = self._add("run", self._of_all()) if self.stages else None
        self.pace = Pace()

    def _add(self, stage: str, text: str) -> TaskID:
        return self.progress.add_task(text, total=None, stage=stage, left=None)

    def _of_all(self) -> str:
        return f"stage {min(self.number + 1, len(self.stages))} of {len(self.stages)}"

    def begin(self, stage: str) -> None:
        """Set the clock of a stage to 0."""
        self.pace = Pace()
        self.progress.reset(self.now, total=None, description="begun", stage=stage, left=None)
        if self.whole is not None and stage in self.stages:
            self.number = self.stages.index(stage)
            self._show_whole(0.0)

    def show(self, stage: str, text: str, done: float | None, total: float | None, left: float | None) -> None:
        """Show a text, and how much is done."""
        share = done / total if done is not None and total else None
        if left is None and done is not None and total:
            left = self.pace.left(done, total)
        ends = None if left is None else time.monotonic() + left
        bar = {"completed": share or 0.0, "total": None if share is None else 1.0}
        self.progress.update(self.now, description=text, stage=stage, left=ends, **bar)
        if stage in self.stages:
            self._show_whole(share or 0.0)

    def end(self) -> None:
        """Take the finished stage away."""
        self.number += 1
        self.progress.reset(self.now, total=None, description="", stage="", left=None)
        self._show_whole(0.0)

    def _show_whole(self, share: float) -> None:
        if self.whole is not None:
            completed = min(self.number + share, len(self.stages))
            self.progress.update(
                self.whole, completed=completed, total=float(len(self.stages)), description=self._of_all()
            )


class Pace:
    """How long the rest takes, by what was done since the first report."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None

    def left(self, done: float, total: float) -> float | None:
        """Seconds until all is done; None while that is not known."""
        now = time.monotonic()
        if self.first is None or done < self.first[0]:
            self.first = done, now
        more, seconds = done - self.first[0], now - self.first[1]
        return seconds / more * (total - done) if more > 0 and seconds > 0 else None


class _Clock(ProgressColumn):
    """How long it has taken, and how long it will take."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True, justify="right"))

    def render(self, task: Task) -> Text:
        said = Text(clock(task.elapsed or 0.0))
        if task.fields["left"] is not None:
            said.append(f", {clock(max(0.0, task.fields['left'] - time.monotonic()))} left")
        return said


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


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
