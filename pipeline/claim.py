"""A run's name: one process owns its folder at a time, and it stands for one training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from dpo.lm.whole_folder import read_json, temporary, to_json, write_atomically
from pipeline.config import Config
from pipeline.config.deepspeed import TUNED, deepspeed_settings
from pipeline.config.section import Section
from pipeline.errors import InputError
from pipeline.store import run_files
from pipeline.store.lease import Lease, owned, refuse_if_held

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
    "export": {"merge", "dtype"},
    "report": {"tensorboard", "trackers", "show_answers", "ray_logs"},
}


# What a run leaves once it has made something under its name.
MADE = (run_files.EPOCHS, run_files.CHECKPOINTS, run_files.WEIGHTS, run_files.EXPORT, run_files.SUMMARY)
WAY_OUT = "Choose another run.name, or give --restart, which keeps what is there under earlier/ in the run's folder."


@contextmanager
def claim(
    config: Config, run_dir: Path, workspace: Path, note: Callable[[str], None], restart: bool = False
) -> Iterator[Lease]:
    """Make a run's folders, own the run's folder and claim its name while the body runs.

    A run that has made nothing under its name claims nothing, however it ends.

    Args:
        note: called with a sentence where the folder is taken over from a process that is gone.
        restart: put what is there away first.

    Raises:
        InputError: a folder cannot be written, another process works on this run, the name belongs to another
            training, or deepspeed.config cannot be used. (Only training reads that file, hours later, so it is checked
            here.)
    """
    deepspeed_settings(config.train, config.deepspeed)
    make_folders(run_dir, workspace)
    with owned(run_dir / run_files.LEASE, f"run.name = {config.run.name!r}", note) as lease:
        if restart:
            put_away(run_dir)
        refuse_other(config, run_dir)
        write_atomically(run_dir / run_files.CONFIG, to_json(json.loads(config.model_dump_json()), indent=2) + "\n")
        try:
            yield lease
        finally:
            if not has_made(run_dir):
                (run_dir / run_files.CONFIG).unlink(missing_ok=True)
                (run_dir / run_files.INPUTS).unlink(missing_ok=True)


def refuse_taken(config: Config) -> None:
    """Raise an InputError where another process works on the run of this name; nothing is written."""
    lease = Path(config.run.dir).resolve() / config.run.name / run_files.LEASE
    refuse_if_held(lease, f"run.name = {config.run.name!r}")


def has_made(run_dir: Path) -> bool:
    """Whether a run has made something under its name."""
    return any((run_dir / name).exists() for name in MADE)


def put_away(run_dir: Path) -> None:
    """Move what earlier commands left in a run's folder into `earlier/<number>`; what can be made again is removed."""
    names = [path.name for path in run_dir.iterdir() if path.name not in (run_files.LEASE, run_files.EARLIER)]
    if not names:
        return
    root = run_dir / run_files.EARLIER
    root.mkdir(exist_ok=True)
    target = root / str(1 + max((int(path.name) for path in root.iterdir() if path.name.isdecimal()), default=0))
    target.mkdir()
    for name in names:
        (run_dir / name).rename(target / name)
    for name in (run_files.EPOCHS, run_files.CHECKPOINTS):
        shutil.rmtree(target / name, ignore_errors=True)


def refuse_other(config: Config, run_dir: Path) -> None:
    """Raise an InputError where something was made under this name with other settings."""
    path, ours = run_dir / run_files.CONFIG, json.loads(config.model_dump_json())
    if not path.exists() or not has_made(run_dir):
        return
    theirs = read_json(path)
    if not _are_settings(theirs):
        raise InputError(f"{path} is damaged, so nobody can say with which settings the run began. {WAY_OUT}")
    differing = [f"{key} (was {old!r}, is {new!r})" for key, old, new in _differences(theirs, ours, config)]
    if differing:
        raise InputError(
            f"run.name = {config.run.name!r} belongs to a run with other settings: {', '.join(differing)}. {WAY_OUT} "
            "Tokens and reference log-probs are still reused."
        )


def _are_settings(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(section, dict) for section in content.values())


def begun_sharding(config: Config) -> dict[str, Any]:
    """The keys of [deepspeed] that a choice makes, as the run of this name began with; empty before it began."""
    theirs = read_json(Path(config.run.dir) / config.run.name / run_files.CONFIG)
    section = theirs.get("deepspeed", {}) if _are_settings(theirs) else {}
    return {name: section[name] for name in ("stage", *TUNED) if section.get(name) is not None}


def make_folders(run_dir: Path, workspace: Path) -> None:
    """Make a run's folders, and try to write to them.

    Raises:
        InputError: one cannot be written; the message names the key.
    """
    for key, folder in (("run.dir", run_dir), ("run.workspace", workspace)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = temporary(folder / "writable")
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
