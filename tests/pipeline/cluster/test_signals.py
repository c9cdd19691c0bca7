"""What Ctrl-C and SIGTERM do while workers train, and otherwise."""

import signal
import time

import pytest

from pipeline.cluster.signals import Sigterm, Terminated, own_sigterm, stopping_after_a_checkpoint

BOTH = pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])


@pytest.fixture(autouse=True)
def sigterm():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found = Sigterm()
    found.heed()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@BOTH
def test_the_first_signal_leaves_a_note_and_interrupts_once_the_workers_have_ended(tmp_path, sigterm, number, kind):
    note, said, done = tmp_path / "note", [], []
    with pytest.raises(kind), stopping_after_a_checkpoint(note, lambda: True, lambda: said.append(1)):
        signal.raise_signal(number)
        deadline = time.monotonic() + 10
        while not note.exists():  # a thread leaves it as well
            assert time.monotonic() < deadline
        done.append("a checkpoint")
    assert done and said == [1] and not note.exists()
    assert sigterm.came == (number == signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is sigterm


@BOTH
def test_a_second_signal_interrupts_at_once(tmp_path, number, kind):
    done = []
    with pytest.raises(kind), stopping_after_a_checkpoint(tmp_path / "note", lambda: True, lambda: None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)
        done.append("a checkpoint")
    assert not done and not list(tmp_path.iterdir())


@BOTH
def test_where_no_worker_trains_the_first_interrupts(tmp_path, number, kind):
    done = []
    with pytest.raises(kind), stopping_after_a_checkpoint(tmp_path / "note", lambda: False, lambda: None):
        signal.raise_signal(number)
        done.append("a checkpoint")
    assert not done and not list(tmp_path.iterdir())


def test_without_a_signal_nothing_is_left(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with stopping_after_a_checkpoint(tmp_path / "note", lambda: True, lambda: None):
        pass
    assert signal.getsignal(signal.SIGINT) is before and not list(tmp_path.iterdir())
    assert signal.set_wakeup_fd(-1) == -1


def test_rays_handler_is_replaced(sigterm):
    with own_sigterm():
        signal.signal(signal.SIGTERM, lambda *_: None)  # as ray.init does
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    assert sigterm.came
