"""Errors that Ray raises -> errors of our own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError

from pipeline.cluster.lost import Kernel, causes, why_lost
from pipeline.errors import InputError, RunError, last_line

ADVICE = "\nFailed to apply UDF transform"  # Ray Data appends it to the text of any error, and leaves no other trace


class translated_errors:
    """Turn what Ray wraps around an error of ours back into that error, of its own class; all else into a RunError."""

    def __init__(self, lower: str = ""):
        """`lower`: the keys that a process needs less memory with."""
        self.lower = lower

    def __enter__(self) -> None:
        self.before = Kernel.now()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        ours = isinstance(error, InputError | KeyboardInterrupt | SystemExit | GeneratorExit)
        if error is None or (ours and not isinstance(error, RayError)):
            return
        all_causes = list(causes(error))
        # Ray raises a class that is both its own and the original's; the original is the one without Ray in it.
        originals = [cause for cause in all_causes if not isinstance(cause, RayError) and str(cause)]
        for cause in originals:
            if isinstance(cause, InputError):
                raise type(cause)(_text(cause)) from None
        lost = why_lost(error, self.before)
        if lost is not None and not any(isinstance(cause, RunError) for cause in originals):
            lower = f" Lower {self.lower}." if self.lower else ""
            raise RunError(f"{lost}.{lower} The same command goes on") from error
        if not originals:  # a process that died; Ray tells the reason at the end of what it says
            raise RunError(last_line(error)) from error
        first = originals[-1]  # what Ray Train raises holds what its workers raised
        name = "" if isinstance(first, RunError) else f"{type(first).__name__}: "
        raise RunError(name + _text(first)) from error


def _text(error: BaseException) -> str:
    """The text of an error, without the advice that Ray Data appends to it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.partition(ADVICE)[0].strip()


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Let Ctrl-C mean the same in training as elsewhere.

    Ray Train puts its own handler in place, which ends the program with status 0 or 1, and leaves it there.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
