"""A verdict that one rank finds ends the run on all ranks, at once and with one sentence.

The other ranks wait for it in a collective, which nothing ends before its time limit. So a rank that runs out of
memory, or scores what is not finite, leaves a note in the run's folder, and every rank looks for one while it works.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

import torch

from pipeline.errors import InputError

T = TypeVar("T")
LOOK_SECONDS = 0.5  # between two looks for a note
# cuBLAS, NCCL and the CPU's allocator report it in classes that they use for all errors.
SAID = ("out of memory", "ALLOC_FAILED", "not enough memory")


class Verdict(InputError):
    """An error that one rank finds by itself, and that ends the run on all of them."""


class OutOfMemory(Verdict):
    """A micro-batch needs more memory than there is."""


@contextmanager
def out_of_memory_as(sentence: Callable[[], str]) -> Iterator[None]:
    """Raise an OutOfMemory with this sentence where torch or a library below it has no memory left."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and not any(said in str(error) for said in SAID):
            raise
        found = OutOfMemory(sentence())
    else:
        return
    raise found  # outside, so that the error does not keep what was computed alive


def with_one_verdict(note: Path, work: Callable[[], T]) -> T:
    """Do the work of this rank in a thread, until it is done or any rank gives a verdict.

    Args:
        note: a file that all ranks see and that belongs to this run alone.

    Raises:
        InputError: the verdict of a rank; the same on every rank. A thread that waits for that rank is left behind.
    """
    future: Future[T] = Future()
    Thread(target=_fulfil, args=(future, work), name="training", daemon=True).start()
    while not note.exists():
        wait([future], LOOK_SECONDS)
        if not future.done():
            continue
        error = future.exception()
        if isinstance(error, Verdict):
            _write_first(note, str(error))
        elif error is None or isinstance(error, InputError) or not _appears(note):
            return future.result()
    raise InputError(note.read_text(encoding="utf-8"))


def _appears(note: Path) -> bool:
    """Whether the reason of an error is a rank that wrote a note and ended; a shared folder may show it late."""
    for _ in range(4):
        if note.exists():
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _write_first(note: Path, sentence: str) -> None:
    """Write a note whole, unless another rank was first."""
    note.parent.mkdir(parents=True, exist_ok=True)
    beside = note.with_name(f"{note.name}.{uuid.uuid4().hex[:8]}")
    beside.write_text(sentence, encoding="utf-8")
    with suppress(FileExistsError):
        os.link(beside, note)
    beside.unlink()
