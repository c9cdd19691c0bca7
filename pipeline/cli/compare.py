"""Folders or names of runs -> the settings in which they differ, and their results side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo.lm.whole_folder import read_json
from pipeline.config.several import plain
from pipeline.errors import InputError, visible
from pipeline.report.compared import LACKING, Line, differing, print_beside, print_rows, write_compared
from pipeline.report.results import Result, is_run, read_result
from pipeline.store import run_files

BESIDE = 4  # runs that have room beside each other; more are shown below each other
LISTED = 12  # runs that a refusal names


def compare(given: argparse.Namespace) -> int:
    """Print the runs side by side; returns the exit status.

    Raises:
        InputError: there is no such run, or only one was given.
    """
    folders = list(
        dict.fromkeys(folder for name in (given.config, *given.overrides) for folder in found(name, Path(given.dir)))
    )
    if len(folders) < 2:
        only = f"there is only {folders[0]}" if folders else "there is no run in it"
        raise InputError(f"compare needs two runs or more, and {only}. Name another one.")
    lines = lines_of([read_result(folder) for folder in folders])
    if len(lines) <= BESIDE:
        print_beside(lines)
    else:
        print_rows(lines, [line.label for line in lines])
    if not lines[0].values:
        print("The runs have the same settings.")
    if given.html is not None:
        page = Path(given.html)
        write_compared(page, " and ".join(line.label for line in lines[:3]), _sentences(lines), lines)
        print(f"report: {visible(str(page.resolve()))}")
    return 0


def found(name: str, runs: Path) -> Iterator[Path]:
    """The run of a folder or of a name; all runs of a sweep, where it is the folder of one.

    Raises:
        InputError: there is none.
    """
    for folder in (Path(name), runs / name):
        sweep = read_json(folder / run_files.SWEEP)
        if isinstance(sweep, dict):
            yield from filter(is_run, (folder.resolve().parent / each["run"] for each in sweep["runs"]))
            return
        if is_run(folder):
            yield folder.resolve()
            return
    there = next((folder for folder in (Path(name), runs) if runs_in(folder)), runs)
    names = runs_in(there)
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    raise InputError(
        f"{name!r} is no run: it has no {run_files.CONFIG}. "
        + (f"The runs in {there} are: {listed}." if names else f"There are no runs in {there}; --dir names a folder.")
    )


def runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder, sorted; none where there is no such folder."""
    return sorted(path.name for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []


def lines_of(results: Sequence[Result]) -> list[Line]:
    """The runs with the settings in which they differ. Two of one name are told apart by their folders."""
    keys = differing(results)
    names = [result.name for result in results]
    lines = []
    for result in results:
        label = result.name if names.count(result.name) == 1 else str(result.folder)
        values = {key: plain(result.settings[key]) if key in result.settings else LACKING for key in keys}
        lines.append(Line(label, result, values, result.state))
    return lines


def _sentences(lines: Sequence[Line]) -> list[str]:
    said = f"{len(lines)} runs"
    return [f"{said}, which differ in {', '.join(lines[0].values)}." if lines[0].values else f"{said} of one setting."]
