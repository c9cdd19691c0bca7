"""The memory of a process, and of its node."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # what version 1 of control groups writes where nothing limits them is above it


def available_bytes() -> int:
    """Return the memory that processes of this node can still take, in bytes; of a container at most half its limit."""
    limit = _group_limit()
    available = _meminfo("MemAvailable")
    return available if limit is None else min(available, limit // 2)


def limit_bytes() -> int:
    """Return the memory, in bytes, at which the kernel ends processes: of this container, or else of the machine."""
    limit = _group_limit()
    return _meminfo("MemTotal") if limit is None else min(limit, _meminfo("MemTotal"))


def kernel_kills() -> int:
    """Return how many processes the kernel has ended for lack of memory since this machine started.

    Source: `oom_kill` in /proc/vmstat, which counts those of containers too.
    """
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def peak_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _group_limit() -> int | None:
    """Return the least limit of the control groups of this process, in bytes, in either version of their files."""
    found = []
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (GROUPS / "memory", "memory.limit_in_bytes") if controllers else (GROUPS, "memory.max")
        own = Path(path)  # and the groups that it is in; a container sees its own one as the root
        for group in (own, *own.parents):
            with suppress(OSError):
                found.append((root / group.relative_to("/") / name).read_text(encoding="ascii").strip())
    limits = [int(limit) for limit in found if limit.isdigit()]
    return min((limit for limit in limits if limit < UNLIMITED), default=None)
