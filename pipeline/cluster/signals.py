"""Ctrl-C and SIGTERM -> the end of a run: at once, or after one more checkpoint while workers train."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ENDED = b"\0"  # no signal has this number
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which batch systems, Kubernetes and `docker stop` send first."""


class Sigterm:
    """SIGTERM interrupts the program as Ctrl-C does. Remembered, since Ray raises a KeyboardInterrupt of its own."""

    came = False

    def heed(self) -> None:
        """Begin to listen. Only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self)

    def __call__(self, *_: object) -> NoReturn:
        self.came = True
        raise Terminated


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Put the handler of SIGTERM back that Ray replaces when it is started. Its own ends the program by an abort."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def stopping_after_a_checkpoint(note: Path, trains: Callable[[], bool], say: Callable[[], None]) -> Iterator[None]:
    """Answer the first signal with a note to the workers, who save a checkpoint and end; then do what it asks.

    A second signal acts at once, and so does the first while no worker trains.

    Args:
        note: the file that workers look for.
        trains: whether they look for it.
        say: tells the user what is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    waking, woken = os.pipe()

    def leave_note() -> None:
        """Tell the workers at once: this program's own handler may wait a second for Ray."""
        if os.read(waking, 1) != ENDED and trains():
            note.touch()

    def stop(number: int, _: Any) -> None:
        at_once = bool(asked) or not trains()
        asked.append(number)
        if at_once:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        note.touch()
        say()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell lets the programs that it starts in the background ignore Ctrl-C, and they keep to that.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    listening = threading.Thread(target=leave_note, daemon=True)
    listening.start()
    os.set_blocking(woken, False)
    wakes = signal.set_wakeup_fd(woken)
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakes)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(woken, ENDED)
        listening.join()
        os.close(waking)
        os.close(woken)
        note.unlink(missing_ok=True)
    if asked:
        signal.raise_signal(asked[0])
