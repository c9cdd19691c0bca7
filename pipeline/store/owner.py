"""Processes as owners of folders: who one is, in words that another host can read, and whether it still lives."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any, NamedTuple


class Owner(NamedTuple):
    """A process, and one of the times that it owned something."""

    host: str
    machine: str  # this boot of this machine, and the room in which process ids count; containers have their own
    pid: int
    started: str  # when the process did, in ticks since the boot: ids are given again
    token: str  # random

    @classmethod
    def me(cls) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _started(pid), secrets.token_hex(8))

    @classmethod
    def of(cls, content: Any) -> Owner | None:
        """The owner that a file names; None where it names none."""
        if not isinstance(content, dict) or content.keys() != set(cls._fields) or type(content["pid"]) is not int:
            return None
        return cls(**content)

    @property
    def is_here(self) -> bool:
        """Whether its process id means something in this process."""
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    @property
    def is_gone(self) -> bool:
        """Whether it certainly lives no more. Of another machine nobody can say."""
        return self.is_here and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _machine() -> str:
    return f"{_line('/proc/sys/kernel/random/boot_id')} {_target('/proc/self/ns/pid')}"


def _started(pid: int) -> str:
    """When a process began, "" where there is none of this id or it has ended and only its parent does not know yet."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return "" if os.path.isdir("/proc/self") or not _is_alive(pid) else "?"
    return "" if fields[0] in "ZX" else fields[19]


def _is_alive(pid: int) -> bool:
    """The same where there is no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
