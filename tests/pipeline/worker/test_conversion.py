"""Checkpoints converted for another number of workers: however long it takes, and whatever becomes of it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.errors import RunError
from pipeline.worker import conversion
from pipeline.worker.checkpoints import TAG
from pipeline.worker.conversion import COMMAND, for_any_world_size, progress
from tests.pipeline.worker.group import Groups, Task
from tests.pipeline.worker.small_run import make_job, saved

COLLECTIVE_SECONDS = 4.0
SAID = """Convert DeepSpeed Checkpoint to Universal Checkpoint
*** 1. Extracting ZeRO fragments
\r  0%|          | 0/2 [00:00<?, ?it/s]\r100%|##########| 2/2 [00:00<00:00, 47.6it/s]
*** 2. Merging slices .....
\r  0%|          | 0/19 [00:00<?, ?it/s]\r 42%|####2     | 8/19 [00:00<00:00, 75.1it/s]"""


@pytest.fixture(scope="module")
def quick_groups(tmp_path_factory):
    """Groups whose collectives end in an error after COLLECTIVE_SECONDS."""
    groups = Groups(tmp_path_factory.mktemp("groups"), COLLECTIVE_SECONDS)
    yield groups
    groups.close()


@pytest.fixture(scope="module")
def stopped(groups, model, epochs, tmp_path_factory):
    """A checkpoint of two ranks under ZeRO-3."""
    job = make_job(tmp_path_factory.mktemp("stopped") / "job", model, epochs, 3, checkpoint_steps=3)
    assert groups.run(2, [Task(job, epochs, [], stop_at=4)]) == [["stopped"] * 2]
    return saved(job)[0]


@pytest.fixture
def checkpoint(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / stopped.name)


def converted(checkpoint: Path, before: str, poll_seconds: float) -> tuple[str, float, list[str]]:
    """Convert on one rank, with code that runs before the converter: the answer, seconds, statuses that were seen."""
    conversion.COMMAND, conversion.POLL_SECONDS = f"{before}\n{COMMAND}", poll_seconds
    status, seen, done = checkpoint.with_name("status.txt"), [], threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            if status.exists() and dist.get_rank() == 0:
                seen.append(status.read_text(encoding="utf-8").strip())

    looking = threading.Thread(target=look, daemon=True)  # which ends with a rank that raises
    looking.start()
    began = time.monotonic()
    try:
        answer = str(for_any_world_size(checkpoint, status))
    except RunError as error:
        answer = str(error)
    done.set()
    looking.join()
    assert dist.get_rank() != 0 or not status.exists()
    return answer, time.monotonic() - began, seen


@pytest.mark.group
def test_it_may_take_longer_than_a_collective(quick_groups, checkpoint):
    before = f"import time; time.sleep({2 * COLLECTIVE_SECONDS})"
    answers = quick_groups.call(2, converted, checkpoint, before, 0.3)
    folder = checkpoint.with_name(f"{checkpoint.name}.universal")
    assert [answer for answer, _, _ in answers] == [str(folder)] * 2
    assert min(seconds for _, seconds, _ in answers) > 2 * COLLECTIVE_SECONDS
    assert "converting checkpoint 001-00000003 for 2 workers" in answers[0][2]
    assert (folder / TAG / "zero" / "optimizer_state.pt").exists()
    assert not (folder / TAG / "tmp").exists()


@pytest.mark.group
def test_an_error_is_one_of_every_rank(quick_groups, checkpoint):
    shard = next((checkpoint / TAG).glob("*_optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:100])
    answers = [answer for answer, _, _ in quick_groups.call(2, converted, checkpoint, "", 0.3)]
    assert answers[0] == answers[1]
    assert f"{checkpoint} could not be converted for another number of workers (" in answers[0]
    assert "bytes are free there)" in answers[0] and "Error" in answers[0]
    assert not checkpoint.with_name(f"{checkpoint.name}.universal").exists()


@pytest.mark.group
def test_a_converter_that_is_killed_is_an_error(quick_groups, checkpoint):
    answers = quick_groups.call(2, converted, checkpoint, "import os; os.kill(os.getpid(), 9)", 0.3)
    assert all("its process ended with status -9" in answer for answer, _, _ in answers)


@pytest.mark.group
def test_it_ends_with_its_rank(checkpoint, tmp_path):
    groups = Groups(tmp_path / "groups")
    try:
        with pytest.raises(AssertionError, match="rank 0 ended with status -9"):
            groups.call(1, killed, checkpoint, tmp_path / "pid")
    finally:
        groups.close()
    converter = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{converter}/cmdline").exists() and Path(f"/proc/{converter}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the converter is still there"
        time.sleep(0.1)


def killed(checkpoint: Path, said: Path) -> None:
    """Die by a signal while the converter runs."""

    def die() -> None:
        while not said.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die).start()
    converted(checkpoint, f"{ENDLESS}; pathlib.Path({str(said)!r}).write_text(str(os.getpid())); time.sleep(600)", 0.3)


ENDLESS = (
    "import os, pathlib, threading, time; from pipeline.worker.conversion import end_with_standard_input; "
    "threading.Thread(target=end_with_standard_input, daemon=True).start()"
)


def test_progress_is_read_from_what_the_converter_prints():
    assert progress("") == progress("Convert DeepSpeed Checkpoint to Universal Checkpoint\n") == ""
    assert progress(SAID) == ": merging, 8 of 19"
    assert progress(SAID.partition("*** 2")[0]) == ": extracting, 2 of 2"
    assert progress(f"{SAID}\n*** 3. Saving common optimizer states\n") == ": saving"
