"""A trace of torch's profiler -> how busy the GPU was, and what kept it from being so."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ON_THE_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")


class Seen(NamedTuple):
    """What a trace shows of a step."""

    busy: float  # microseconds in which the GPU did anything
    waits: int  # calls in which the CPU waits for the GPU
    launches: int  # of kernels
    longest: list[tuple[str, float]]  # kernels by their microseconds in all, the longest first


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace, as torch writes it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def seen_in(events: Iterable[dict[str, Any]]) -> Seen:
    """Add up the events of a step."""
    times: list[tuple[float, float]] = []
    kernels: defaultdict[str, float] = defaultdict(float)
    waits = launches = 0
    for event in events:
        kind, name = event.get("cat"), event.get("name", "")
        if kind in ON_THE_GPU:
            times.append((event["ts"], event["ts"] + event["dur"]))
            kernels[name] += event["dur"]
        elif kind in CALLS:
            waits += "Synchronize" in name
            launches += "Launch" in name
    return Seen(_covered(times), waits, launches, sorted(kernels.items(), key=lambda kernel: -kernel[1])[:20])


def _covered(times: list[tuple[float, float]]) -> float:
    """The length of what at least one of the intervals covers."""
    covered, end = 0.0, float("-inf")
    for began, ended in sorted(times):
        covered += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return covered
