"""Results of several runs -> one table, on the terminal or as a page with their curves over one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import visible
from pipeline.report import pages
from pipeline.report.evidence import LN_2
from pipeline.report.results import FINISHED, HELD_OUT, NUMBERS, Number, Result
from pipeline.report.run_page import thinned
from pipeline.store import run_files

LACKING = "-"
# What a row on the terminal has room for.
IN_ROWS = {*HELD_OUT, "loss_last", "steps", "pairs_per_second", "seconds"}
PRINTED_WIDTH = 120  # characters, where the output is no terminal
# Of curves over one another; on a light page and on a dark one.
COLORS = ("#2a78d6", "#d1495b", "#2e9e5b", "#b8860b", "#8e5bd0", "#1b9aaa", "#e0703a", "#7a8590")
CURVES = (
    ("Loss in training; the dotted line is ln 2", "loss"),
    ("Loss on the held-out pairs", "eval/loss"),
    ("Accuracy on the held-out pairs", "eval/rewards/accuracies"),
    ("Reward margin on the held-out pairs", "eval/rewards/margins"),
)


class Line(NamedTuple):
    """A run of a table."""

    label: str  # in a legend
    result: Result
    values: dict[str, str]  # the settings that are shown
    said: str  # FINISHED, or why not

    @property
    def finished(self) -> bool:
        return self.said == FINISHED


def differing(results: Sequence[Result]) -> list[str]:
    """The settings in which runs differ; their names and folders do not count."""
    keys = dict.fromkeys(key for result in results for key in result.settings)
    but = ("run.name", "run.dir")
    first = results[0].settings
    other = {key for result in results for key in keys if result.settings.get(key) != first.get(key)}
    return [key for key in keys if key in other and key not in but]


def known(lines: Sequence[Line]) -> list[Number]:
    """The results that at least one run has."""
    return [number for number in NUMBERS if any(number.name in line.result.numbers for line in lines)]


def cell(line: Line, number: Number) -> str:
    """One result as text."""
    value = line.result.numbers.get(number.name)
    return LACKING if value is None else format(value, number.form)


# On the terminal


def print_rows(lines: Sequence[Line], heads: Sequence[str]) -> None:
    """Print a row for each run, with these words first."""
    numbers = [number for number in known(lines) if number.name in IN_ROWS]
    table = Table()
    table.add_column("", overflow="fold")
    for key in lines[0].values:
        table.add_column(Text(visible(key)), overflow="fold")
    for number in numbers:
        table.add_column(number.title, justify="right")
    if not all(line.finished for line in lines):
        table.add_column("state")
    for head, line in zip(heads, lines, strict=True):
        cells = [head, *line.values.values(), *(cell(line, number) for number in numbers), _shortly(line)]
        _add(table, cells[: len(table.columns)])
    _print(table)


def print_beside(lines: Sequence[Line]) -> None:
    """Print a column for each run: the settings in which they differ, their results, and how far they came."""
    table = Table()
    table.add_column("")
    for line in lines:
        table.add_column(Text(visible(line.label)), justify="right", overflow="fold")
    for key in lines[0].values:
        _add(table, [key, *(line.values[key] for line in lines)])
    if lines[0].values:
        table.add_section()
    for number in known(lines):
        _add(table, [number.title, *(cell(line, number) for line in lines)])
    _add(table, ["state", *(line.said for line in lines)])
    _print(table)


def _shortly(line: Line) -> str:
    """How far a run came, without the reason, which has a line of its own."""
    return line.said.partition(":")[0]


def _add(table: Table, cells: Sequence[str]) -> None:
    table.add_row(*(Text(visible(each)) for each in cells))


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=PRINTED_WIDTH)).print(table)


# The page


def write_compared(
    path: Path, title: str, sentences: Sequence[str], lines: Sequence[Line], more: Sequence[pages.Picture] = ()
) -> None:
    """Write a page: the table, why runs are not finished, and pictures.

    Args:
        sentences: what is said above the table.
        lines: the runs, in the order of the table.
        more: pictures before the curves.
    """
    numbers = known(lines)
    rows = [
        {
            "name": line.result.name,
            "link": _link(path, line.result.folder),
            "values": list(line.values.values()),
            "numbers": [cell(line, number) for number in numbers],
            "state": _shortly(line),
        }
        for line in lines
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pages.write_page(
        path,
        "runs.html",
        title=title,
        sentences=sentences,
        keys=list(lines[0].values),
        titles=[number.title for number in numbers],
        rows=rows,
        unfinished=[{"name": line.label, "said": line.said} for line in lines if not line.finished],
        pictures=[*more, *_curves(lines)],
    )


def _link(page: Path, folder: Path) -> str | None:
    report = folder / run_files.REPORT
    return quote(Path(os.path.relpath(report.resolve(), page.parent.resolve())).as_posix()) if report.exists() else None


def _curves(lines: Sequence[Line]) -> list[pages.Picture]:
    """Each metric of all runs in one picture; of many runs the first."""
    drawn = []
    for caption, name in CURVES:
        having = [line for line in lines if name in line.result.curves]
        cut = f", the first {len(COLORS)} runs of the table" if len(having) > len(COLORS) else ""
        if having:
            draw = partial(_draw_curves, having[: len(COLORS)], name)
            drawn.append(pages.picture(draw, f"{caption}{cut}"))
    return drawn


def _draw_curves(lines: Sequence[Line], name: str, axes: Any, colors: dict[str, str]) -> None:
    if name == "loss":
        axes.axhline(LN_2, color=colors["faint"], ls=":", lw=1)
    for line, color in zip(lines, COLORS, strict=False):
        steps, values = thinned(line.result.curves[name])
        marker = "o" if name.startswith("eval/") else ""
        axes.plot(steps, values, color=color, label=line.label, lw=1.3, marker=marker, markersize=3)
    axes.set(xlabel="optimizer step")
    axes.legend(frameon=False, fontsize=7)


def against(key: str, values: Sequence[str], lines: Sequence[Line], name: str) -> pages.Picture:
    """Draw a held-out result against the values of a key; a line joins runs that differ in nothing else.

    Args:
        values: all values of the key as text, in the order of the axis.
        name: of HELD_OUT.
    """
    title = next(number.title for number in NUMBERS if number.name == name)
    return pages.picture(partial(_draw_against, key, values, lines, name, title), f"{title} against {key}")


def _draw_against(
    key: str, values: Sequence[str], lines: Sequence[Line], name: str, title: str, axes: Any, colors: dict[str, str]
) -> None:
    series: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if name in line.result.numbers and line.finished:
            others = " ".join(f"{other}={value}" for other, value in line.values.items() if other != key)
            point = values.index(line.values[key]), line.result.numbers[name]
            series.setdefault(others, []).append(point)
    for number, (others, points) in enumerate(sorted(series.items())):
        color = COLORS[number % len(COLORS)] if len(series) > 1 else colors["prompt"]
        axes.plot(*zip(*sorted(points), strict=True), color=color, label=others, lw=1.3, marker="o", markersize=4)
    axes.set_xticks(range(len(values)), values)
    axes.set(xlabel=key, ylabel=title)
    if 1 < len(series) <= len(COLORS):
        axes.legend(frameon=False, fontsize=7)


def held_out_of(lines: Sequence[Line]) -> list[str]:
    """The held-out results that at least one run has."""
    return [name for name in HELD_OUT if any(name in line.result.numbers for line in lines)]
