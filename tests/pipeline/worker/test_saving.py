"""Checkpoints that are written while training goes on, on real process groups; the disk is as slow as a test needs."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from pipeline.errors import RunError
from pipeline.store.artifacts import MANIFEST
from pipeline.worker import rank, saving
from pipeline.worker.loop import Done, Job, train
from pipeline.worker.saving import CopyingEngine, Saving
from tests.pipeline.worker.group import Groups, Stopped, Task
from tests.pipeline.worker.small_run import curve, json_lines, make_job, saved, trained

OPTIONS = {"checkpoint_steps": 3, "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def own_groups(tmp_path_factory):
    """Groups of this file alone, since their disks change."""
    groups = Groups(tmp_path_factory.mktemp("groups"))
    yield groups
    groups.close()


@pytest.fixture
def job(model, epochs, tmp_path):
    return make_job(tmp_path / "job", model, epochs, 2, **OPTIONS)


def committed(job: Job) -> list[int]:
    """The steps of the checkpoints that count."""
    return sorted(int(path.parent.name[-8:]) for path in Path(job.checkpoints).glob(f"*/{MANIFEST}"))


def on_a_disk(job: Job, epochs: list, gate: Path, opens_at: int, stop_at: int | None = None) -> tuple[Any, list]:
    """Train while nothing reaches the disk until a second after step `opens_at` began; what counted at each step."""
    seen: list[list[int]] = []

    def batches(epoch: int, first: int) -> Iterator[pa.Table]:
        for step in range(first, len(epochs[epoch])):
            over_all = epoch * job.steps_per_epoch + step
            seen.append(committed(job))
            if over_all == opens_at:
                threading.Timer(1.0, gate.touch).start()
            if over_all == stop_at:
                raise Stopped
            yield epochs[epoch][step]

    real = saving._written
    saving._written = lambda *file: _until(gate.exists) or real(*file)
    rank.BRIEF_SECONDS, rank.MEETING_SECONDS = 0, 0.2
    try:
        return train(job, torch.device("cpu"), batches, lambda: iter(())), seen
    except Stopped:
        return "stopped", seen
    except RunError as error:
        return str(error), seen
    finally:
        saving._written = real


def _until(condition: Any) -> None:
    while not condition():
        time.sleep(0.01)


@pytest.mark.group
def test_training_goes_on_while_a_checkpoint_is_written(own_groups, job, model, epochs, tmp_path):
    """The disk opens in the sixth step, after which the second checkpoint is due: it waits for the first."""
    answers = own_groups.call(2, on_a_disk, job, epochs, tmp_path / "gate", 5)
    assert all(isinstance(answer, Done) for answer, _ in answers), answers
    assert answers[0][1][:6] == [[]] * 6
    assert answers[0][1][6][:1] == [3]
    assert committed(job) == [3, 6, 9, 10]  # the last one is waited for
    plain = make_job(tmp_path / "plain", model, epochs, 2)
    own_groups.run(2, [Task(plain, epochs, [])])
    assert curve(job) == curve(plain)
    again = json_lines(Path(job.checkpoints) / "attempts.jsonl")
    assert [attempt["from_step"] for attempt in again] == [0]


@pytest.mark.group
def test_what_was_copied_is_what_training_goes_on_from(own_groups, job, model, epochs, tmp_path):
    """Steps 4 and 5 are taken before the checkpoint of step 3 is written: its files are of step 3 all the same."""
    answers = own_groups.call(2, on_a_disk, job, epochs, tmp_path / "gate", 4, 6)
    assert [answer for answer, _ in answers] == ["stopped"] * 2
    assert committed(job)[0] == 3
    for path in saved(job)[1:]:
        (path / MANIFEST).unlink(missing_ok=True)
    assert all(isinstance(answer, Done) for answer in own_groups.run(2, [Task(job, epochs, [])])[0])
    assert [x["from_step"] for x in json_lines(Path(job.checkpoints) / "attempts.jsonl")] == [0, 3]
    plain = make_job(tmp_path / "plain", model, epochs, 2)
    own_groups.run(2, [Task(plain, epochs, [])])
    ours, theirs = trained(job), trained(plain)
    assert all(ours[name].equal(theirs[name]) for name in theirs)  # bit for bit


@pytest.mark.group
def test_an_end_while_a_checkpoint_is_written_leaves_none(own_groups, job, epochs, tmp_path):
    answers = own_groups.call(2, on_a_disk, job, epochs, tmp_path / "gate", 99, 5)
    assert [answer for answer, _ in answers] == ["stopped"] * 2
    assert [path.name for path in saved(job)] == ["001-00000003"]
    assert committed(job) == []
    assert all(isinstance(answer, Done) for answer in own_groups.run_afresh(2, [Task(job, epochs, [])])[0])
    assert [x["from_step"] for x in json_lines(Path(job.checkpoints) / "attempts.jsonl")] == [0, 0]
    assert committed(job) == [3, 6, 9, 10]


@pytest.mark.group
def test_files_that_one_rank_cannot_write_are_an_error_of_every_rank(own_groups, job, epochs, tmp_path):
    answers = own_groups.call(2, with_a_full_disk, job, epochs, tmp_path / "gate")
    said = {answer for answer, _ in answers}
    assert len(said) == 1
    assert "no checkpoint could be written to" in min(said) and "bytes are free: No space left on device" in min(said)
    assert len(answers[0][1]) in (3, 4, 5, 6)  # at the next point where the ranks meet, by the next checkpoint
    assert committed(job) == []


def with_a_full_disk(job: Job, epochs: list, gate: Path) -> tuple[Any, list]:
    """Train on a disk on which rank 1 has no room."""
    real = saving._written

    def full(path: Path, content: memoryview | None) -> dict[str, Any]:
        if dist.get_rank() == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    gate.touch()
    saving._written = full
    try:
        return on_a_disk(job, epochs, gate, 99)
    finally:
        saving._written = real


def test_copies_are_written_with_their_digests_and_files_without_room_at_once(tmp_path, monkeypatch):
    state = {"weights": [torch.arange(10.0)], "step": 3}
    engine = copying_engine()
    engine.save(state, str(tmp_path / "copied.pt"))
    assert not (tmp_path / "copied.pt").exists()
    monkeypatch.setattr(saving, "available_bytes", lambda: 79)  # 10 numbers of 4 bytes, twice, and one byte is missing
    engine.save(state, str(tmp_path / "at once.pt"))
    assert (tmp_path / "at once.pt").exists()
    state["weights"][0].zero_()
    writing = Saving(tmp_path, engine.copies)
    assert writing.problem(60) == ""
    assert engine.copies == []  # the memory is given back
    for name in ("copied.pt", "at once.pt"):
        content = (tmp_path / name).read_bytes()
        assert writing.files[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        found = torch.load(tmp_path / name)
        assert found["step"] == 3 and found["weights"][0].equal(torch.arange(10.0))


def test_memory_that_tensors_share_is_counted_once(tmp_path, monkeypatch):
    whole = torch.arange(10.0)
    monkeypatch.setattr(saving, "available_bytes", lambda: 80)
    engine = copying_engine()
    engine.save({"parts": (whole[:5], whole[5:])}, str(tmp_path / "state.pt"))
    assert not (tmp_path / "state.pt").exists()


def copying_engine() -> CopyingEngine:
    """An engine as DeepSpeed makes it without a configuration."""
    return CopyingEngine(None)
