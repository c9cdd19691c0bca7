"""The memory of a process, and of its node."""

from __future__ import annotations

import resource
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, in bytes, or the word max


def available_bytes() -> int:
    """Return the memory that processes of this node can still take, in bytes; of a container at most half its limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = LIMIT.read_text(encoding="ascii").strip() if LIMIT.exists() else "max"
    return available if limit == "max" else min(available, int(limit) // 2)


def peak_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
