"""`ray job submit` on two nodes of this machine, with token authentication, as `examples/two_nodes.sh` does it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e.running import ROOT, rows, summary


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.ray
@pytest.mark.long
def test_a_job_that_is_stopped_and_submitted_again(tmp_path: Path) -> None:
    environment = {"RAY_PORT": free_port(), "RAY_DASHBOARD_PORT": free_port(), "RAY_TEMP": f"/tmp/ra{os.getpid()}"}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "two_nodes.sh"), str(tmp_path / "two")],
        env={**os.environ, **environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job 'second' succeeded" in done.stdout
    run = tmp_path / "two" / "runs" / "two-nodes"
    found = summary(run)
    assert found["steps"] == 75
    assert found["eval_accuracy"] > 0.9
    first, second = rows(run / "checkpoints" / "attempts.jsonl")
    assert first["from_step"] == 0 and second["from_step"] >= 5
    lines = [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]
    lasting = [x for x in lines if x["attempt"] == 2 or x["step"] <= second["from_step"]]
    seen = [row for line in lasting for row in line["row_ids"]]
    assert len(seen) == len(set(seen)) == found["pairs_used"] - 320
