"""Digests of files that have not changed since they were computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo.lm.whole_folder import file_digest
from pipeline.store.records import read_record, write_record

YOUNG_SECONDS = 2.0  # a file may change once more within the grain of its times, so one so young is not trusted


class Memo:
    """Digests stored in the workspace. One is valid while size, times, inode and path of a file are equal.

    A program can set the time of modification back, but not that of the inode's change.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = read_record(path) or {}

    def digest(self, path: Path, kind: str = "file", compute: Callable[[Path], str] = file_digest) -> str:
        """Return `compute(path)`, or the stored result if the file, or the files in the folder, have not changed."""
        known = self.recall(path, kind)
        if known is not None:
            return known
        began, files, key = time.time_ns(), _files(path), f"{kind}:{path}"
        digest = compute(path)
        if _files(path) == files:
            self.known = (read_record(self.path) or {}) | {key: {"state": [began, files], "digest": digest}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_record(self.path, self.known)
        return digest

    def recall(self, path: Path, kind: str, young: bool = False) -> str | None:
        """Return the stored result; None if there is none that is still valid.

        Args:
            young: whether one counts that was computed right after the files had changed.
        """
        known = self.known.get(f"{kind}:{path}")
        if known is None or known["state"][1:] != [_files(path)]:
            return None
        return known["digest"] if young or _settled(*known["state"]) else None


def _settled(began: int, files: list[list[Any]]) -> bool:
    """Whether no file was still young when its digest began to be computed."""
    return all(max(times) < began - YOUNG_SECONDS * 1e9 for _, _, *times, _ in files)


def _files(path: Path) -> list[list[Any]]:
    """Name, size, times of modification and of the inode's change in nanoseconds, and inode of each file."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    stats = [(file.name, file.stat()) for file in files]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]
