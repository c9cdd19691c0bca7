"""One command works on a run at a time; what a killed one leaves is taken over at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.running import ray_align, summary
from tests.pipeline.lab import made
from tests.places import ROOT

pytestmark = pytest.mark.ray


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, "the run ended first"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_command_is_refused_and_one_after_a_kill_goes_on(tmp_path: Path) -> None:
    folder = made(tmp_path / "lab", rows=400)
    command = [sys.executable, "-m", "pipeline", "run", str(folder / "tiny.toml")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = folder / "runs" / "base"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_for(run / "lease.json", first)
        began = time.monotonic()
        second = ray_align("run", str(folder / "tiny.toml"), "loss.beta=0.3")
        seconds = time.monotonic() - began
        assert second.returncode == 2, second.stdout + second.stderr
        assert second.stderr.startswith(f"ray-align: run.name = 'base' is being worked on by process {first.pid} on ")
        assert len(second.stderr.splitlines()) == 1 and seconds < 20, seconds  # a second and a half on a free machine
        wait_for(run / "epochs" / "manifest.json", first)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert json.loads((run / "lease.json").read_text())["pid"] == first.pid
    third = ray_align("run", str(folder / "tiny.toml"))
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"was left by process {first.pid}" in third.stdout
    assert summary(run)["steps"] == 50 and not (run / "lease.json").exists()
