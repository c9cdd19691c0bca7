"""A lease: the file by which one process owns a folder that others see too. Its owner touches it as long as it lives.

A lease is stale once its owner certainly lives no more, or, on another machine, once nobody has touched it for minutes.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dpo.lm.whole_folder import read_json, temporary
from pipeline.errors import InputError
from pipeline.store.owner import Owner

BEAT_SECONDS = 15.0  # between two touches
STALE_SECONDS = 300.0  # without a touch, after which an owner on another machine is taken to be gone
SETTLE_SECONDS = 0.05  # after a take-over, in which another process may find that it was not the first
POLL_SECONDS = 1.0  # between two looks of whoever waits for a lease


class Held(NamedTuple):
    """A lease that somebody holds."""

    owner: Owner | None  # None: it is just being written, or is damaged
    idle: float  # seconds since it was touched, by the clock of whoever keeps the files

    @property
    def is_stale(self) -> bool:
        if self.owner is not None and self.owner.is_here:
            return self.owner.is_gone
        return self.idle > STALE_SECONDS

    def __str__(self) -> str:
        who = "another process" if self.owner is None else str(self.owner)
        return f"{who}, which was last heard of {self.idle:,.0f} s ago"


class Lease:
    """A lease that this process holds."""

    def __init__(self, path: Path, owner: Owner):
        self.path, self.owner = path, owner
        self._end = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    @property
    def token(self) -> str:
        """The name of this holding, by which another process can ask whether it lasts."""
        return self.owner.token

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with suppress(OSError):  # the disk may be away for a while
                if is_held(self.path, self.token):
                    os.utime(self.path)

    def release(self) -> None:
        """Give the lease back, if it is still this process's."""
        self._end.set()
        self._beats.join()
        if is_held(self.path, self.token):
            self.path.unlink(missing_ok=True)


def is_held(path: Path, token: str) -> bool:
    """Whether the lease at `path` is still the one with this token."""
    owner = Owner.of(read_json(path))
    return owner is not None and owner.token == token


def holder(path: Path) -> Held | None:
    """Look who holds the lease at `path`; None: nobody does."""
    try:
        touched = path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    owner = Owner.of(read_json(path))
    if owner is not None and owner.is_here:
        return Held(owner, max(0.0, time.time() - touched))
    return Held(owner, max(0.0, _now_at(path.parent) - touched))


def _now_at(folder: Path) -> float:
    """The time by the clock that dates the files of a folder, which may be another host's."""
    probe = folder / f".clock.{secrets.token_hex(8)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def take(path: Path, note: Callable[[str], None]) -> Lease | Held:
    """Take the lease at `path`, or say who holds it. One that is stale is taken over.

    Args:
        note: called with a sentence where a lease was taken over.
    """
    taken_over = False
    while True:
        owner = Owner.me()
        try:
            _create(path, json.dumps(owner._asdict()))
        except FileExistsError:
            held = holder(path)
            if held is None:
                continue
            if not held.is_stale:
                return held
            if _put_away(path, held):
                taken_over = True
                note(f"{path.parent.name} was left by {held}, without an end; it is taken over")
        else:
            if taken_over:
                time.sleep(SETTLE_SECONDS)
            if not taken_over or is_held(path, owner.token):
                return Lease(path, owner)


def _create(path: Path, content: str) -> None:
    """Make a file that is whole as soon as it is there. Raises FileExistsError if one is there."""
    beside = temporary(path)
    beside.write_text(content, encoding="utf-8")
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without second names
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    finally:
        beside.unlink()


def _put_away(path: Path, stale: Held) -> bool:
    """Remove a stale lease; False where another process was first, and its new one is left where it is."""
    if Owner.of(read_json(path)) != stale.owner:
        return False
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    taken = Owner.of(read_json(aside))
    if taken is not None and taken != stale.owner:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    return taken == stale.owner


def refuse_if_held(path: Path, name: str) -> None:
    """Raise an InputError where a living process holds the lease; nothing is written."""
    held = holder(path) if path.exists() else None
    if held is not None and not held.is_stale:
        raise InputError(_taken(name, held))


@contextmanager
def owned(path: Path, name: str, note: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease at `path` while the body runs.

    Args:
        name: of what is owned, for the message.

    Raises:
        InputError: another process holds it.
    """
    found = take(path, note)
    if isinstance(found, Held):
        raise InputError(_taken(name, found))
    try:
        yield found
    finally:
        found.release()


def _taken(name: str, held: Held) -> str:
    return f"{name} is being worked on by {held}. Wait until it has ended, or choose another run.name."


@contextmanager
def owned_in_turn(path: Path, note: Callable[[str], None], waiting: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease at `path` while the body runs, as soon as whoever holds it gives it back.

    Args:
        waiting: called with who holds it, again and again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while isinstance(found := take(path, note), Held):
        waiting(str(found))
        time.sleep(POLL_SECONDS)
    try:
        yield found
    finally:
        found.release()
