"""The memory of a process."""

from __future__ import annotations

import resource


def peak_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
