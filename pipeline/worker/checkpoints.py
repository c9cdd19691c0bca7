"""Checkpoint folders. Each belongs to one attempt, is complete once it has a manifest, and is verified before use."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dpo.lm.whole_folder import describe, sync
from pipeline.errors import RunError
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST, write_manifest
from pipeline.store.records import read_manifest
from pipeline.worker.job import Best

TAG = "state"  # DeepSpeed's folder in a checkpoint
NAME = re.compile(r"\d{3,}-\d{8,}")  # of a checkpoint's folder: see name_of
ATTEMPT = re.compile(r"(\d{3,})[-.]")  # what all names of an attempt's folders begin with


class Checkpoint(NamedTuple):
    """A complete checkpoint, as its record says."""

    path: Path
    counts: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def age(self) -> tuple[int, int]:
        """Attempt and step: what a newer attempt wrote is newer."""
        return self.counts["attempt"], self.counts["step"]


def name_of(attempt: int, step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"{attempt:03}-{step:08}"


def latest(folder: Path, job: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete, undamaged checkpoint of this job and its counts, or None.

    Every rank must call this. Rank 0 lists the folder for all: on a shared file system a rank may see it later.
    """
    found = [sorted(_of_job(folder, job), key=lambda c: c.age[::-1]) if dist.get_rank() == 0 else []]
    dist.broadcast_object_list(found)
    for checkpoint in reversed(found[0]):
        # Skip a damaged checkpoint: the one before it is valid, only older.
        if _undamaged(checkpoint):
            return checkpoint.path, checkpoint.counts
    return None


def _of_job(folder: Path, job: str) -> list[Checkpoint]:
    """List this job's complete checkpoints."""
    read = (_read(path, job) for path in folder.glob("*") if NAME.fullmatch(path.name))
    return [checkpoint for checkpoint in read if checkpoint is not None]


def _read(path: Path, job: str | None) -> Checkpoint | None:
    """The checkpoint in a folder, if its record is whole, of this job (None: any), and says what the name says."""
    manifest = read_manifest(path / MANIFEST)
    if manifest is None or manifest.fingerprint != (job or manifest.fingerprint):
        return None
    counts = manifest.counts
    plain = all(type(counts.get(name)) is int for name in ("step", "attempt", "world_size"))
    if not plain or name_of(counts["attempt"], counts["step"]) != path.name:
        return None
    return Checkpoint(path, counts, manifest.files)


def best_of(folder: Path, best: Best) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint of the best evaluation and its counts, or None if it is damaged.

    Every rank must call this; rank 0 reads the manifest for all.
    """
    found = [_read(folder / best.checkpoint, None)]
    dist.broadcast_object_list(found)
    (checkpoint,) = found
    if checkpoint is None or not _undamaged(checkpoint):
        return None
    return checkpoint.path, checkpoint.counts


def _undamaged(checkpoint: Checkpoint) -> bool:
    """Whether the files of a checkpoint are those of its manifest. Each rank digests a share of them."""
    path, files = checkpoint.path, checkpoint.files
    by_size = sorted(files, key=lambda name: (files[name]["bytes"], name))
    mine = by_size[dist.get_rank() :: dist.get_world_size()]
    answers = [True] * dist.get_world_size()
    dist.all_gather_object(answers, all((path / n).is_file() and describe(path / n) == files[n] for n in mine))
    return all(answers)


def begin_attempt(folder: Path, job: str) -> int:
    """Return the number of the attempt that begins now, above every number that a folder's name has.

    Attempts that ended before their first checkpoint have a line in a log alone, which may be lost.

    What no attempt of this job can use any more is removed: checkpoints that were not completed, conversions that were
    cut off, checkpoints of other jobs. The caller owns the run's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in folder.iterdir()]
    attempts = [int(match[1]) for match in map(ATTEMPT.match, names) if match is not None]
    for path in (folder / name for name in names if ATTEMPT.match(name)):
        if NAME.fullmatch(path.name) is None or _read(path, job) is None:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
    log = folder / run_files.ATTEMPTS
    return 1 + max([log.read_bytes().count(b"\n") if log.exists() else 0, *attempts])


def own_counts(states: Mapping[torch.Tensor, dict[str, Any]], steps: int) -> None:
    """Give each state of Adam a count of steps of its own, on its parameter's device.

    A universal checkpoint leaves the counts on the CPU, where torch's fused Adam refuses them. Under ZeRO-3 it also
    gives one tensor to all sub-groups of parameters, and each sub-group counts it up.

    Raises:
        RunError: a state has counted another number of steps than the checkpoint.
    """
    for parameter, state in states.items():
        counted = float(state["step"])
        if counted != steps:
            raise RunError(
                f"Adam counted {counted:g} steps in a checkpoint of {steps}, so its bias correction would be wrong. "
                "Remove the newest folder in checkpoints/, and the run goes on from the one before"
            )
        state["step"] = torch.tensor(counted, dtype=torch.float32, device=parameter.device)


def commit(path: Path, job: str, counts: dict[str, Any], written: dict[str, dict[str, Any]] | None = None) -> None:
    """Write the manifest of a checkpoint after all ranks wrote their files; all is on the disk before.

    Every rank must call this, with the entries of the files that it wrote and synced; each rank digests and syncs a
    share of the others.
    """
    files = _gathered(written or {})
    others = sorted({str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - files.keys())
    mine = others[dist.get_rank() :: dist.get_world_size()]
    for name in mine:
        sync(path / name)
    files |= _gathered({name: describe(path / name) for name in mine})
    if dist.get_rank() == 0:
        for below in (*(p for p in path.rglob("*") if p.is_dir()), path, path.parent):
            sync(below)
        write_manifest(path, job, counts, dict(sorted(files.items())), {})


def _gathered(mine: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    shares: list[dict[str, dict[str, Any]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(shares, mine)
    return {name: entry for share in shares for name, entry in share.items()}


def keep_last(folder: Path, job: str, count: int, newest: str | None = None) -> None:
    """Remove this job's checkpoints except the last `count`, those that they name as the best, and `newest`.

    Checkpoints are ordered by attempt first: a damaged one with a later step, which a newer attempt skipped, must not
    displace the checkpoints of that attempt.

    Args:
        newest: the name of the one that was just written.
    """
    found = sorted(_of_job(folder, job), key=lambda c: (c.path.name == newest, c.age))
    kept = {Best(*c.counts["best"]).checkpoint for c in found[-count:] if c.counts.get("best")}
    for checkpoint in found[:-count]:
        if checkpoint.path.name not in kept:
            (checkpoint.path / MANIFEST).unlink()  # first, so that a half-removed folder does not count as a checkpoint
            shutil.rmtree(checkpoint.path)
