"""Checkpoint folders: unique to an attempt, complete once their manifest is there, verified before they are loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.errors import InputError
from pipeline.store.artifacts import MANIFEST, describe, read_json, write_manifest


def latest(folder: Path, job: str, world_size: int) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete, undamaged checkpoint of this job and its counts, or None.

    Raises:
        InputError: it was written by another number of workers.
    """
    found = []
    for manifest in folder.glob(f"*/{MANIFEST}"):
        content = read_json(manifest)
        if content is not None and content["fingerprint"] == job:
            found.append((content["counts"]["step"], content["counts"]["attempt"], manifest.parent, content))
    for *_, path, content in sorted(found, key=lambda entry: entry[:2], reverse=True):
        if not all((path / n).is_file() and describe(path / n) == entry for n, entry in content["files"].items()):
            continue  # torn or damaged: the one before it is as good, only older
        if content["counts"]["world_size"] != world_size:
            raise InputError(
                f"{path} was written by {content['counts']['world_size']} workers and cluster.workers is {world_size}. "
                f"Set cluster.workers = {content['counts']['world_size']} to go on, or run.name to start anew."
            )
        return path, content["counts"]
    return None


def commit(path: Path, job: str, counts: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint that all ranks have written. Every rank digests its share of the files."""
    names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = {name: describe(path / name) for name in names[rank::size]}
    shares: list[dict[str, Any]] = [{}] * size
    dist.all_gather_object(shares, mine)
    if rank == 0:
        files = {name: entry for share in shares for name, entry in share.items()}
        write_manifest(path, job, counts, files, {})


def keep_last(folder: Path, job: str, count: int) -> None:
    """Remove this job's checkpoints but for the last `count` written.

    By attempt first: one that a later attempt passed over as damaged must not push out what that attempt writes.
    """
    found = []
    for manifest in folder.glob(f"*/{MANIFEST}"):
        content = read_json(manifest)
        if content is not None and content["fingerprint"] == job:
            found.append((content["counts"]["attempt"], content["counts"]["step"], manifest.parent))
    for *_, path in sorted(found)[:-count]:
        (path / MANIFEST).unlink()  # first, so that a half-removed folder is no checkpoint
        shutil.rmtree(path)
