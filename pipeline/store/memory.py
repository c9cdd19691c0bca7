"""The memory of a process."""

from __future__ import annotations

import resource


def peak_bytes() -> int:
    """The most bytes that this process has had resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
