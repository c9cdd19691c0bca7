"""A function in a process of its own: what it imports costs the process that asks for it nothing."""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

from pipeline.errors import InputError, RunError, last_line

T = TypeVar("T")
# The path is set first: Python looks in the current folder before all else, where a user may have a pipeline/.
COMMAND = "import sys; sys.path[:] = {path}; from pipeline.process import answer; answer()"


class Process(Generic[T]):
    """A call that runs beside this process, until its result is asked for or it is ended."""

    def __init__(self, function: Callable[..., T], *args: Any):
        """Start `function(*args)`; the function is one of a module, the arguments can be pickled."""
        path = [entry or os.getcwd() for entry in sys.path]
        self._name = function.__name__
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND.format(path=path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        with self._process.stdin as call:
            pickle.dump((function, args), call)
        self._process.stdin = None  # `communicate` would write to it

    def result(self) -> T:
        """Wait for what the function returns.

        Raises:
            InputError: the function raised it, of its own class.
            RunError: the function raised anything else, or its process died.
        """
        out, said = self._process.communicate()
        if self._process.returncode:
            died = RuntimeError(said.decode(errors="replace"))
            raise RunError(f"the process of {self._name} ended: {last_line(died)}")
        found = pickle.loads(out)
        if isinstance(found, BaseException):
            raise found
        return found

    def end(self) -> None:
        """End the process, if its result is not wanted any more."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@cache
def end_quickly() -> None:
    """Let this process end without the search for garbage that Python makes last: a second, where torch is loaded.

    Meanwhile it does not look for garbage among what it has imported, either.
    """
    gc.freeze()
    atexit.register(gc.freeze)


def answer() -> None:
    """Run the call on standard input; its result goes to standard output, and all that it prints to standard error."""
    end_quickly()
    result = os.dup(1)
    os.dup2(2, 1)
    function, args = pickle.load(sys.stdin.buffer)
    try:
        found = function(*args)
    except (InputError, RunError) as error:
        found = error
    with os.fdopen(result, "wb") as out:
        pickle.dump(found, out)
