"""A configuration, or a run's folder -> the run that was made with it, once it has exported its model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.claim import FREE
from pipeline.config import Config
from pipeline.errors import InputError, visible
from pipeline.place import Place
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST, Artifact, is_sized
from pipeline.store.records import read_manifest

CARD = "README.md"  # of the model


def finished(config: Config, command: str) -> tuple[Place, Artifact]:
    """The place of a run with the settings that it was run with, and its export.

    Args:
        command: makes the run, or finishes it.

    Raises:
        InputError: it was not run, or not to its end.
    """
    folder = Path(config.run.dir).resolve() / config.run.name
    if not (folder / run_files.CONFIG).is_file():
        raise InputError(f"run.name = {config.run.name!r} was not run yet: there is no run in {folder}. Run {command}")
    export = _export_of(folder)
    if export is None:
        raise InputError(f"the run in {folder} is not finished: it has no whole {run_files.EXPORT}/. Run {command}")
    made = Config.load(str(folder))
    for said in _otherwise(config, made):
        print(visible(f"ray-align: the run was made with {said}"), file=sys.stderr)
    return Place.of(made), export


def _otherwise(given: Config, made: Config) -> Iterator[str]:
    """Say which of the settings that are given, and decide what is trained, the run was made with otherwise."""
    for name, section in given:
        ours, theirs = section.model_dump(), getattr(made, name).model_dump()
        for key in sorted(section.model_fields_set - FREE.get(name, set())):
            if ours[key] not in (theirs.get(key), "auto"):  # which the machine has decided
                yield f"{name}.{key} = {theirs.get(key)!r}, not {ours[key]!r}"


def _export_of(run_dir: Path) -> Artifact | None:
    """The exported folder, if all files are there that its manifest names, with their sizes; the card may be edited."""
    folder = run_dir / run_files.EXPORT
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None or not (folder / CARD).is_file():
        return None
    if not all(is_sized(folder / name, entry) for name, entry in manifest.files.items() if name != CARD):
        return None
    return Artifact(folder, manifest.fingerprint, manifest.counts, manifest.files)
