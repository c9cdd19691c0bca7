"""A run's name. One training claims it; a run that is refused gives it back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import PydanticUndefined, to_jsonable_python

from dpo.lm.whole_folder import read_json, to_json, write_atomically
from pipeline.config import Config
from pipeline.config.deepspeed import TUNED, deepspeed_settings
from pipeline.config.section import Section
from pipeline.errors import InputError
from pipeline.store import run_files

# A run's name identifies one training. These keys may change between two runs of the same name: they decide where the
# work is done, how often it is saved and what is shown, but not what is trained.
FREE = {
    "run": {"dir", "workspace", "audit"},
    "reference": {
        "cache",
        "by",
        "actors",
        "cpus_per_actor",
        "gpus_per_actor",
        "resources",
        "labels",
        "batch_sequences",
        "batch_tokens",
        "guard_tolerance",
    },
    "sft": {"micro_batch_tokens"},
    "train": {
        "checkpoint_minutes",
        "deterministic",
        "checkpoint_steps",
        "keep_checkpoints",
        "max_failures",
        "share_prompts",
        "activation_checkpointing",
        "micro_batch_tokens",
    },
    "cluster": {"address", "workers", "cpus_per_worker", "gpus_per_worker", "resources", "labels", "start_minutes"},
    "evaluate": {"every_steps", "generate_prompts", "max_new_tokens"},
    "report": {"tensorboard", "show_answers", "ray_logs"},
}


class Claim(NamedTuple):
    """A run's folder, and whether this process was the first to take its name."""

    run_dir: Path
    first: bool

    def release(self) -> None:
        """Give the name back, if this process was the first to take it and no epoch was written under it.

        The user can then correct the settings or the data and use the same name.
        """
        if self.first and not (self.run_dir / run_files.EPOCHS).exists():
            (self.run_dir / run_files.CONFIG).unlink(missing_ok=True)


def claim(config: Config, run_dir: Path, workspace: Path) -> Claim:
    """Make a run's folders and claim its name.

    Raises:
        InputError: a folder cannot be written, the name belongs to another training, or deepspeed.config cannot be
            used. (Only training reads that file, hours later, so it is checked here.)
    """
    deepspeed_settings(config.train, config.deepspeed)
    make_folders(run_dir, workspace)
    path, ours = run_dir / run_files.CONFIG, json.loads(config.model_dump_json())
    theirs = read_json(path)
    if theirs is not None:
        differing = [f"{key} (was {old!r}, is {new!r})" for key, old, new in _differences(theirs, ours, config)]
        if differing:
            raise InputError(
                f"run.name = {config.run.name!r} belongs to a run with other settings: "
                f"{', '.join(differing)}. Choose another run.name; tokens and reference "
                "log-probs are still reused."
            )
    write_atomically(path, to_json(ours, indent=2) + "\n")
    return Claim(run_dir, first=theirs is None)


def begun_sharding(config: Config) -> dict[str, Any]:
    """The keys of [deepspeed] that a choice makes, as the run of this name began with; empty before it began."""
    theirs = read_json(Path(config.run.dir) / config.run.name / run_files.CONFIG) or {}
    section = theirs.get("deepspeed") or {}
    return {name: section[name] for name in ("stage", *TUNED) if section.get(name) is not None}


def make_folders(run_dir: Path, workspace: Path) -> None:
    """Make a run's folders, and try to write to them.

    Raises:
        InputError: one cannot be written; the message names the key.
    """
    for key, folder in (("run.dir", run_dir), ("run.workspace", workspace)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{key}: cannot write to {folder}: {error.strerror}. Name another folder.") from None


def _differences(theirs: dict[str, Any], ours: dict[str, Any], config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Compare settings key by key. A key that was not there yet when a run began had what is its default now."""
    for section in sorted(theirs.keys() | ours.keys()):
        defaults = _defaults(dict(config).get(section))
        old, new = defaults | (theirs.get(section) or {}), ours.get(section) or {}
        for key in sorted(old.keys() | new.keys()):
            if key not in FREE.get(section, ()) and old.get(key) != new.get(key):
                yield f"{section}.{key}", old.get(key), new.get(key)


def _defaults(section: Any) -> dict[str, Any]:
    """The defaults of a section's keys as plain values; keys that must be given have none."""
    fields = type(section).model_fields if isinstance(section, Section) else {}
    found = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    return {name: to_jsonable_python(value) for name, value in found.items() if value is not PydanticUndefined}
