"""Checkpoints are unpickled, which runs code that is in them: only those of this user are, as ssh does with keys."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from pipeline.errors import InputError
from pipeline.store.artifacts import MANIFEST

WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def keep_to_myself() -> None:
    """Let nobody else write what this process writes from now on, whatever the user's umask allows."""
    os.umask(os.umask(0) | WRITABLE)


def refuse_foreign(checkpoints: Path) -> None:
    """Refuse checkpoints that belong to another user or that others may write. Every rank must call this.

    Raises:
        InputError: on every rank alike. It names the first of them.
    """
    found = [next(_foreign(checkpoints), None) if dist.get_rank() == 0 and checkpoints.is_dir() else None]
    dist.broadcast_object_list(found)
    if found[0] is not None:
        path, why, mend = found[0]
        raise InputError(
            f"{path} {why}. A checkpoint is unpickled, so it would run code of whoever wrote it. {mend}, or remove "
            f"{checkpoints}: the training then begins anew."
        )


def _foreign(checkpoints: Path) -> Iterator[tuple[Path, str, str]]:
    me, keeps_modes = _as_seen_here(checkpoints)
    for manifest in sorted(checkpoints.glob(f"*/{MANIFEST}")):
        for path in (manifest.parent, *sorted(manifest.parent.rglob("*"))):
            found = path.lstat()
            if found.st_uid not in (me, 0):
                yield path, f"belongs to the user id {found.st_uid}, not to {me}", "Run as that user"
            elif keeps_modes and not path.is_symlink() and found.st_mode & WRITABLE:
                mend = f"If you trust it, run chmod -R go-w {checkpoints}"
                yield path, f"may be written by others (mode {stat.S_IMODE(found.st_mode):o})", mend


def _as_seen_here(folder: Path) -> tuple[int, bool]:
    """The owner that this file system gives to what this process writes, and whether it keeps modes."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".owner.") as mine:  # which others may not write
        found = os.fstat(mine.fileno())
    return found.st_uid, not found.st_mode & WRITABLE
