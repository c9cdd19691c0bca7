"""A run that is stopped in training, as a user or a batch system does it, goes on from the step that it was in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.running import ROOT, ray_align, rows
from tests.e2e.test_misuse import CONFIG

pytestmark = [pytest.mark.ray, pytest.mark.long]
MORE = "[train]\nbatch_pairs = 4\nlearning_rate = 1e-3\n[run]\naudit = true\n"


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [row["step"] for row in rows(path) if "loss" in row] if path.exists() else []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_same_command_goes_on_from_the_step_of_the_signal(tmp_path: Path, number: int, status: int) -> None:
    pairs = [{"prompt": f"say word {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}."} for i in range(1600)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    config = CONFIG.replace("dim = 32\ndepth = 1", "dim = 128\ndepth = 2") + MORE
    (tmp_path / "my.toml").write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", str(tmp_path / "my.toml"), "run.name=x"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = tmp_path / "runs" / "x"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        deadline = time.monotonic() + 300
        while len(steps_of(run)) < 7 and started.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started.send_signal(number)
        said = started.communicate(timeout=120)[1]
    assert (started.returncode, said) == (status, "ray-align: stopped; run the same command to continue\n")
    stopped = steps_of(run)[-1]
    (saved,) = (path.parent.name for path in run.glob("checkpoints/*/manifest.json"))
    assert saved == f"001-{stopped:08}" and stopped < 400
    assert not list(run.glob("*.stop"))
    done = ray_align("run", str(tmp_path / "my.toml"), "run.name=x")
    assert done.returncode == 0, done.stderr
    assert steps_of(run) == list(range(1, 401))
    assert rows(run / "checkpoints" / "attempts.jsonl")[1]["from_step"] == stopped
    seen = [row for line in rows(run / "audit.jsonl") for row in line["row_ids"]]
    assert len(seen) == len(set(seen)) == 1600
