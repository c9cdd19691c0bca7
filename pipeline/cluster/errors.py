"""Errors that Ray raises -> errors of our own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError

from pipeline.errors import InputError, RunError, last_line

ADVICE = "\nFailed to apply UDF transform"  # Ray Data appends it to the text of any error, and leaves no other trace


class translated_errors:
    """Turn what Ray wraps around an error of ours back into that error, of its own class; all else into a RunError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        ours = isinstance(error, InputError | KeyboardInterrupt | SystemExit | GeneratorExit)
        if error is None or (ours and not isinstance(error, RayError)):
            return
        # Ray raises a class that is both its own and the original's; the original is the one without Ray in it.
        causes = [cause for cause in _causes(error) if not isinstance(cause, RayError) and str(cause)]
        for cause in causes:
            if isinstance(cause, InputError):
                raise type(cause)(_text(cause)) from None
        if not causes:  # a process that died; Ray tells the reason at the end of what it says
            raise RunError(last_line(error)) from error
        first = causes[-1]  # what Ray Train raises holds what its workers raised
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


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what lies below it; Ray keeps causes in different places."""
    seen: list[BaseException] = []
    todo: list[Any] = [error]
    while todo:
        here = todo.pop(0)
        if isinstance(here, BaseException) and here not in seen:
            seen.append(here)
            yield here
            todo += [getattr(here, "cause", None), here.__cause__, getattr(here, "_base_exc", None)]
            todo += list(getattr(here, "worker_failures", {}).values())
