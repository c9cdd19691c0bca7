"""Run the command line as a user does: a process of its own, a TOML file, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.places import ROOT


def ray_align(*arguments: str, seconds: int = 600, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ARGUMENTS`, with its output. `path`: where its processes look for packages."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def audited(run: Path) -> list[tuple[int, int]]:
    """(epoch, row id) of every pair that the loop says it trained on."""
    return [(line["epoch"], row) for line in rows(run / "audit.jsonl") for row in line["row_ids"]]
