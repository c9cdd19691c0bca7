"""A worker and an actor that take ever more memory are ended, by Ray or by the kernel: one sentence says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.at_import import write_change
from tests.e2e.test_by_trainers import CONFIG
from tests.places import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.long]
GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1, where a test may make one for itself
GIB = 2**30
ROOM = 6 * GIB  # for the command with all of Ray's processes, which take about three

# One method of one class takes memory until its process is ended.
TAKE = """
def take(*given, **named):
    import time
    kept = []
    while True:
        kept.append(b"x" * (64 << 20))
        time.sleep(0.02)

def change(module):
    setattr(getattr(module, {owner!r}), {method!r}, take)
"""
PLACES = {
    "worker": ("pipeline.worker.engine", "Engine", "backward"),
    "actor": ("pipeline.models.scorer", "Scorer", "__call__"),
}
KEYS = {"worker": "train.micro_batch_tokens", "actor": "reference.batch_tokens"}


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of its own, with a limit."""
    place = GROUPS / f"test-{os.getpid()}"
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text(str(ROOM), encoding="ascii")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield place
    place.rmdir()


def run(folder: Path, where: str, group: Path | None, **more: str) -> subprocess.CompletedProcess[str]:
    pairs = [{"prompt": f"say word {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}."} for i in range(160)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    config = CONFIG.replace('by = "trainers"\n', "").replace("[train]", "[train]\nmax_failures = 1")
    (folder / "my.toml").write_text(config, encoding="utf-8")
    module, owner, method = PLACES[where]
    write_change(folder, module, TAKE.replace("{owner!r}", repr(owner)).replace("{method!r}", repr(method)))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{folder}:{ROOT}", **more}
    command = [sys.executable, "-m", "pipeline", "run", str(folder / "my.toml"), "run.name=x"]
    if group is not None:
        command = ["bash", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "bash", *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def check(done: subprocess.CompletedProcess[str], where: str, said: str) -> None:
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2, "the sentence, and where the logs are"
    assert "memory ran out on node " in done.stderr and said in done.stderr
    assert f"Lower {KEYS[where]}" in done.stderr
    if where == "worker":
        assert "a worker was lost: memory ran out on node " in done.stdout
        assert "going on from step 0, attempt 2 of 2" in done.stdout


@pytest.mark.parametrize("where", PLACES)
def test_by_the_kernel(tmp_path: Path, where: str, group: Path) -> None:
    done = run(tmp_path, where, group, RAY_memory_monitor_refresh_ms="0")
    check(done, where, "the kernel ended a process, as all 6.00 GiB were in use")


@pytest.mark.parametrize("where", PLACES)
def test_by_ray(tmp_path: Path, where: str) -> None:
    memory = psutil.virtual_memory()
    threshold = 1 - (memory.available - ROOM) / memory.total
    if threshold > 0.95:
        pytest.skip("too little memory is free here")
    done = run(tmp_path, where, None, RAY_memory_usage_threshold=f"{threshold:.3f}")
    check(done, where, " GiB by the process that Ray ended")
