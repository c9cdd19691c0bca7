"""Checkpoint folders. Each belongs to one attempt, is complete once it has a manifest, and is verified before use."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dpo.lm.whole_folder import describe, read_json
from pipeline.errors import RunError
from pipeline.store.artifacts import MANIFEST, write_manifest
from pipeline.worker.job import Best

TAG = "state"  # DeepSpeed's folder in a checkpoint


def latest(folder: Path, job: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete, undamaged checkpoint of this job and its counts, or None.

    Every rank must call this. Rank 0 lists the folder for all: on a shared file system a rank may see it later.
    """
    found = [sorted(_of_job(folder, job), key=_progress) if dist.get_rank() == 0 else []]
    dist.broadcast_object_list(found)
    for path, content in reversed(found[0]):
        # Skip a damaged checkpoint: the one before it is valid, only older.
        if _undamaged(path, content):
            return path, content["counts"]
    return None


def _progress(checkpoint: tuple[Path, dict[str, Any]]) -> tuple[int, int]:
    counts = checkpoint[1]["counts"]
    return counts["step"], counts["attempt"]


def _of_job(folder: Path, job: str) -> list[tuple[Path, dict[str, Any]]]:
    """List this job's complete checkpoints, each with its manifest."""
    read = ((manifest.parent, read_json(manifest)) for manifest in folder.glob(f"*/{MANIFEST}"))
    return [(path, content) for path, content in read if content is not None and content["fingerprint"] == job]


def best_of(folder: Path, best: Best) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint of the best evaluation and its counts, or None if it is damaged.

    Every rank must call this; rank 0 reads the manifest for all.
    """
    path = folder / best.checkpoint
    found = [(path, read_json(path / MANIFEST))]
    dist.broadcast_object_list(found)
    path, content = found[0]
    if content is None or not _undamaged(path, content):
        return None
    return path, content["counts"]


def _undamaged(path: Path, content: dict[str, Any]) -> bool:
    """Whether the files of a checkpoint are those of its manifest. Each rank digests a share of them."""
    files = content["files"]
    by_size = sorted(files, key=lambda name: (files[name]["bytes"], name))
    mine = by_size[dist.get_rank() :: dist.get_world_size()]
    answers = [True] * dist.get_world_size()
    dist.all_gather_object(answers, all((path / n).is_file() and describe(path / n) == files[n] for n in mine))
    return all(answers)


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
    """Write the manifest of a checkpoint after all ranks wrote their files.

    Every rank must call this, with the entries of the files that it wrote; each rank digests a share of the others.
    """
    files = _gathered(written or {})
    others = sorted({str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - files.keys())
    mine = others[dist.get_rank() :: dist.get_world_size()]
    files |= _gathered({name: describe(path / name) for name in mine})
    if dist.get_rank() == 0:
        write_manifest(path, job, counts, dict(sorted(files.items())), {})


def _gathered(mine: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    shares: list[dict[str, dict[str, Any]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(shares, mine)
    return {name: entry for share in shares for name, entry in share.items()}


def keep_last(folder: Path, job: str, count: int) -> None:
    """Remove this job's checkpoints except the last `count` and those that they name as the best.

    Checkpoints are ordered by attempt first: a damaged one with a later step, which a newer attempt skipped, must not
    displace the checkpoints of that attempt.
    """
    found = sorted(_of_job(folder, job), key=lambda c: (c[1]["counts"]["attempt"], c[1]["counts"]["step"]))
    best = {Best(*c["counts"]["best"]).checkpoint for _, c in found[-count:] if c["counts"].get("best")}
    for path, _ in found[:-count]:
        if path.name not in best:
            (path / MANIFEST).unlink()  # first, so that a half-removed folder does not count as a checkpoint
            shutil.rmtree(path)
