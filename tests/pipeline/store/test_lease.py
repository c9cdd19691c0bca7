"""Who owns a folder, and when another process takes it over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import InputError
from pipeline.store import lease as module
from pipeline.store.lease import Held, Lease, holder, is_held, owned, owned_in_turn, take
from pipeline.store.owner import Owner
from tests.places import ROOT


def written(path, owner, age=0.0):
    """A lease that somebody has taken and touched so many seconds ago."""
    path.write_text(json.dumps(owner._asdict()))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def elsewhere():
    return Owner.me()._replace(host="another")


def test_a_lease_is_held_until_it_is_given_back(tmp_path):
    path = tmp_path / "lease.json"
    lease = take(path, print)
    assert isinstance(lease, Lease) and is_held(path, lease.token) and not is_held(path, "x")
    held = take(path, print)
    assert isinstance(held, Held) and held.owner == lease.owner
    lease.release()
    assert holder(path) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("age", "stale"), [(0.0, False), (module.STALE_SECONDS - 30, False), (module.STALE_SECONDS + 30, True)]
)
def test_on_another_machine_silence_counts(tmp_path, age, stale):
    path, said = written(tmp_path / "lease.json", elsewhere(), age), []
    found = take(path, said.append)
    assert isinstance(found, Lease) == stale
    assert len(said) == stale and all("another" in line and "taken over" in line for line in said)


def test_here_a_living_process_counts_however_silent_it_is(tmp_path):
    path = written(tmp_path / "lease.json", Owner.me(), 10 * module.STALE_SECONDS)
    assert isinstance(take(path, print), Held)


def test_here_a_dead_process_does_not_count_nor_does_one_that_got_its_id(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert isinstance(take(written(tmp_path / "a", Owner.me()._replace(pid=child.pid)), print), Lease)
    assert isinstance(take(written(tmp_path / "b", Owner.me()._replace(started="another")), print), Lease)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"host": 1}'])
def test_a_damaged_lease_is_taken_over_when_nobody_touches_it(tmp_path, content):
    path = tmp_path / "lease.json"
    path.write_bytes(content)
    assert isinstance(take(path, print), Held)
    os.utime(path, (0, 0))
    assert isinstance(take(path, print), Lease)


def test_an_owner_touches_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    path = tmp_path / "lease.json"
    lease = take(path, print)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    written(path, elsewhere(), 50)  # taken over: it is no longer ours to touch or to remove
    before = path.stat().st_mtime
    time.sleep(0.1)
    lease.release()
    assert path.stat().st_mtime == before


def test_of_many_that_take_over_at_once_one_wins(tmp_path):
    for turn in range(20):
        path = written(tmp_path / str(turn), elsewhere(), 10 * module.STALE_SECONDS)
        found, start = [], threading.Barrier(4)

        def contend(path=path, found=found, start=start):
            start.wait()
            found.append(take(path, lambda said: None))

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [each for each in found if isinstance(each, Lease)]
        assert len(winners) == 1 and is_held(path, winners[0].token)
        winners[0].release()


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.store.lease import take
take(Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_held_is_free_at_once(tmp_path):
    path = tmp_path / "lease.json"
    command = [sys.executable, "-c", HOLDER, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"^the thing is being worked on by process {process.pid} on "):  # noqa: SIM117
            with owned(path, "the thing", print):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        said = []
        with owned(path, "the thing", said.append):
            assert f"process {process.pid}" in said[0]


def test_whoever_waits_has_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    path, said, first = tmp_path / "deep" / "lease.json", [], threading.Event()
    order = []

    def hold():
        with owned_in_turn(path, print, print):
            first.set()
            while not said:
                time.sleep(0.01)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    first.wait()
    with owned_in_turn(path, print, said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and f"process {os.getpid()}" in said[0]
