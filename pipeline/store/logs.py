"""Logs that people and tools read, one JSON object a line. They decide nothing: a line that is damaged is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_steps(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a log that have a step, and the lines that cannot be read as such; none where it is missing.

    A last line without an end was cut off by a kill, and counts as neither.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    rows, damaged = [], []
    for line in text.split("\n")[:-1]:
        row = row_of(line)
        if row is not None:
            rows.append(row)
        else:
            damaged.append(line)
    return rows, damaged


def row_of(line: str) -> dict[str, Any] | None:
    """Return the row that a line of a log holds, None where it holds none with a step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None
