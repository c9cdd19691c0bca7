"""A configuration and keys with several values -> a run for each combination, and a table of their results.

The runs share tokens, reference log-probs and one Ray. Each is a run as any other, by a name of its own: what is
finished is not run again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config import Config
from pipeline.config.several import Grid, plain, read_grid, run_name, said, sweep_name, values_of
from pipeline.errors import Diverged, InputError, RunError

if TYPE_CHECKING:
    from pipeline.place import Place

FAILED = "failed"
PREPARED = {"run": {"trial", "workspace"}, "data": True, "tokenizer": True, "policy": True, "reference": True}


class Planned(NamedTuple):
    """One combination: its configuration under the name of its own run, and its swept settings."""

    config: Config
    values: dict[str, Any]  # plain values by key

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def said(self) -> str:
        return said(self.values)

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir).resolve() / self.name


def sweep(given: argparse.Namespace) -> int:
    """Run every combination, or those that --random draws; returns the exit status.

    Raises:
        InputError: a combination cannot be run. Nothing was trained then.
    """
    grid = read_grid(Config, given.overrides)
    # Of a drawing, too, every value is looked at, whether it is drawn or not.
    configs = _load(given.config, grid, range(grid.size) if given.random is None else grid.edges())
    base = configs[0].run
    if given.random is not None:
        configs = _load(given.config, grid, grid.drawn(given.random, base.seed))
    planned = _planned(configs, grid.keys)
    from pipeline.cluster.connect import disconnect

    try:
        failed = _run_all(planned)
    finally:
        disconnect()
    _tell(Path(base.dir).resolve() / sweep_name(base.name, grid.keys), planned, failed)
    return 1 if failed else 0


# Before anything is trained


def _planned(configs: Sequence[Config], keys: Sequence[str]) -> list[Planned]:
    """The runs of these configurations, each under a name of its own."""
    found = []
    for config in configs:
        values = values_of(json.loads(config.model_dump_json()), keys)
        named = config.run.model_copy(update={"name": run_name(config.run.name, values)})
        found.append(Planned(config.model_copy(update={"run": named}), values))
    counts = Counter(each.name for each in found)
    for each in found:
        if counts[each.name] > 1:
            raise InputError(f"{counts[each.name]} combinations are {each.said}. Write every value once.")
    return found


def _load(path: str, grid: Grid, numbers: Sequence[int]) -> list[Config]:
    found: list[Config] = []
    wrong: list[tuple[str, InputError]] = []
    for number in numbers:
        words = grid.words(number)
        try:
            found.append(Config.load(path, [*grid.fixed, *words]))
        except InputError as error:
            wrong.append((" ".join(words), error))
    _refuse(wrong, len(numbers))
    return found


def _refuse(wrong: Sequence[tuple[str, InputError]], of: int) -> None:
    """Raise the first of several errors, and say with which settings it comes, unless it comes with all."""
    if not wrong:
        return
    settings, first = wrong[0]
    alike = [error for _, error in wrong if str(error) == str(first)]
    if len(alike) == of:
        raise first
    more = f" ({len(wrong)} of {of:,} combinations cannot be run)" if len(wrong) > 1 else ""
    raise InputError(f"with {settings}: {first}{more}")


def _places(planned: Sequence[Planned]) -> list[Place]:
    """Look at all that would stop a run before it trains; returns where each would stand.

    Raises:
        InputError: names the combination.
    """
    from pipeline.claim import has_made, refuse_other, refuse_taken
    from pipeline.cluster.machine import settled
    from pipeline.config.deepspeed import deepspeed_settings
    from pipeline.place import Place
    from pipeline.report.trackers import refuse_missing
    from pipeline.stages.contents import same_contents
    from pipeline.stages.preflight import Inputs, preflight

    places: list[Place] = []
    wrong: list[tuple[str, InputError]] = []
    looked_at: dict[str, Inputs] = {}  # what most combinations share
    for each in planned:
        try:
            refuse_taken(each.config)
            place = Place.of(settled(each.config, ask_cluster=True), keeps_ray=True)
            refuse_missing(place.config.report.trackers)
            deepspeed_settings(place.config.train, place.config.deepspeed)
            refuse_other(place.config, place.run_dir)
            shared = place.config.model_dump_json(include={**PREPARED, "cluster": True})
            if shared not in looked_at:
                looked_at[shared] = preflight(place)
            if has_made(place.run_dir):
                same_contents(place, looked_at[shared])
            places.append(place)
        except InputError as error:
            wrong.append((each.said, error))
    _refuse(wrong, len(planned))
    return places


# The runs


def _run_all(planned: Sequence[Planned]) -> dict[str, str]:
    """Run what is not finished, one after another; returns why runs failed, by name."""
    places = _places(planned)
    left = [(each, place) for each, place in zip(planned, places, strict=True) if not _is_done(place)]
    note = places[0].terminal.note
    note(f"{len(planned):,} runs, {len(planned) - len(left):,} of them finished before")
    _refuse_too_large(left)
    failed: dict[str, str] = {}
    for each, place in left:
        note(f"\nrun {planned.index(each) + 1:,} of {len(planned):,}: {each.said}")
        reason = _run(each.config, place, [place for _, place in left], places)
        if reason is not None:
            note(f"{FAILED}: {reason}")
            failed[each.name] = reason
    return failed


def _refuse_too_large(left: Sequence[tuple[Planned, Place]]) -> None:
    """Connect, and raise an InputError where the cluster can never hold a combination."""
    from pipeline.claim import make_folders
    from pipeline.cluster.connect import connect_for, refuse_too_large

    wrong: list[tuple[str, InputError]] = []
    for number, (each, place) in enumerate(left):
        if number == 0:
            make_folders(place.run_dir, place.workspace)
            connect_for(place, [place for _, place in left])
        try:
            refuse_too_large(place)
        except InputError as error:
            wrong.append((each.said, error))
    _refuse(wrong, len(left))


def _is_done(place: Place) -> bool:
    """Whether a run is finished, and evaluated and exported as it is asked for now."""
    from dpo.lm.whole_folder import read_json
    from pipeline.report.results import is_finished
    from pipeline.store import run_files

    if not is_finished(place.run_dir):
        return False
    then, now = read_json(place.run_dir / run_files.CONFIG), json.loads(place.config.model_dump_json())
    return all(then.get(section) == now[section] for section in ("evaluate", "export"))


def _run(config: Config, place: Place, left: list[Place], places: list[Place]) -> str | None:
    """Run one combination; returns why it failed, None where it did not.

    Args:
        left: the runs that one Ray is to be large enough for.
        places: all runs.

    Raises:
        InputError: settings or data stopped the run before it made anything, and none has made anything yet: the others
            would end alike.
    """
    from pipeline.claim import has_made, make_folders
    from pipeline.cluster.connect import connect_for, disconnect
    from pipeline.run import run

    try:
        make_folders(place.run_dir, place.workspace)
        connect_for(place, left)  # where a run that failed has left it
        run(config, keeps_ray=True)
    except (InputError, RunError, OSError) as error:
        disconnect()  # nothing of a run that failed is to reach the next one
        mistaken = isinstance(error, InputError) and not isinstance(error, Diverged)
        if mistaken and not any(has_made(each.run_dir) for each in places):
            raise
        return " ".join(str(error).split())
    return None


# What is said of them


def _tell(folder: Path, planned: Sequence[Planned], failed: dict[str, str]) -> None:
    """Print the table of all runs, best first, and write it to a folder of its own."""
    from pipeline.report.compared import Line
    from pipeline.report.leaderboard import tell
    from pipeline.report.results import read_result

    lines = []
    for each in planned:
        result = read_result(each.folder)
        said = f"{FAILED}: {failed[each.name]}" if each.name in failed else result.state
        shown = {key: plain(value) for key, value in each.values.items()}
        lines.append(Line(each.said, result, shown, said))
    tell(folder, lines, {each.name: each.values for each in planned})
