"""Counts and times of a run -> summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.lm.whole_folder import to_json, write_atomically
from pipeline.store import run_files
from pipeline.store.memory import peak_bytes


def write_summary(run_dir: Path, counts: dict[str, Any], seconds: dict[str, float], peak: int) -> dict[str, Any]:
    """Write `summary.json` and return it.

    Args:
        counts: counts by name, in the order of the stages.
        seconds: duration of each stage.
        peak: largest resident memory of any process of a stage, in bytes.
    """
    summary = {"eval_accuracy": None, **counts, "seconds": seconds, "peak_rss_bytes": max(peak_bytes(), peak)}
    write_atomically(run_dir / run_files.SUMMARY, to_json(summary, indent=2) + "\n")
    return summary
