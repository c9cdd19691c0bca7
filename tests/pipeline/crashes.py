"""A process that dies in the middle of writing: from some call on, nothing that changes files works any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROKEN = [
    (os, "fsync"),
    (os, "remove"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "mkdir"),
    (Path, "replace"),
    (Path, "rename"),
]


class Crash(OSError):
    """What a call raises once the process is dead."""


def every_crash(monkeypatch: pytest.MonkeyPatch, work: Callable[[int], Any], cut: bool) -> Iterator[int]:
    """Let `work(n)` die at the n-th of its writes, syncs, renames and removals; yields n, until it lives to its end.

    Args:
        cut: whether the write at which it dies leaves half of its bytes.
    """
    for n in range(10_000):
        with monkeypatch.context() as patch:
            _break(patch, n, cut)
            try:
                work(n)
            except Crash:
                dead = True
            else:
                dead = False
        yield n
        if not dead:
            return


def _break(patch: pytest.MonkeyPatch, at: int, cut: bool) -> None:
    made = 0

    def dies() -> bool:
        nonlocal made
        made += 1
        return made > at

    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if dies():
                raise Crash("crash")
            return function(*args, **keywords)

        return call

    for place, name in BROKEN:
        patch.setattr(place, name, broken(getattr(place, name)))
    real_open = Path.open

    def open_file(path: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        file = real_open(path, mode, *args, **keywords)
        return _Writer(file, dies, cut) if set("wax") & set(mode) else file

    patch.setattr(Path, "open", open_file)


class _Writer:
    """A file whose writing may be where the process dies."""

    def __init__(self, file: Any, dies: Callable[[], bool], cut: bool):
        self.file, self.dies, self.cut = file, dies, cut

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> int:
        if not self.dies():
            return self.file.write(content)
        if self.cut:
            self.file.write(content[: len(content) // 2])
        raise Crash("crash")
