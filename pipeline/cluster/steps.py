"""The windows of a feed -> the rows of one optimizer step after another, read ahead by Ray Data."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import ray.data

from pipeline.cluster.items import over
from pipeline.errors import RunError
from pipeline.store.parquet import row_groups
from pipeline.worker.feed import FAILED, Feed

PREFETCH = 2  # steps read ahead


class Steps:
    """The steps of each epoch, and of the held-out pairs."""

    def __init__(self, feed: Feed):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self.feed = feed
        # A process that is ready for the first window by the time that this one has imported its libraries.
        ray.remote(_nothing).options(num_cpus=1, scheduling_strategy="DEFAULT").remote()

    def epoch(self, epoch: int, first: int) -> Iterator[pa.Table]:
        """The steps of an epoch, from step `first` on."""
        window, skipped = divmod(first, self.feed.steps_per_window)
        steps = _steps(self.feed, self.feed.epochs[epoch][window:])
        for _ in range(skipped):
            next(steps)
        return steps

    def held_out(self) -> Iterator[pa.Table]:
        """The held-out pairs, as many at a time as in a step."""
        return _steps(self.feed, self.feed.held_out)


def _nothing() -> None:
    """The work of a task whose process is what is wanted."""


def _steps(feed: Feed, paths: list[str]) -> Iterator[pa.Table]:
    """The rows of windows as one table per step."""
    if not feed.appearing:
        return _stream(paths, feed.batch_pairs)
    # One at a time: a task that waits for its window would hold a CPU that scoring may need.
    return (step for path in paths if _wait_for(Path(path)) for step in _stream([path], feed.batch_pairs))


def _wait_for(path: Path) -> bool:
    """Return once the window is there.

    Raises:
        RunError: whoever writes the windows has failed.
    """
    failed = path.parents[1] / FAILED
    while not path.exists():
        if failed.exists():
            raise RunError(f"no further window to train on: {failed.read_text(encoding='utf-8')}")
        time.sleep(0.2)
    return True


def _stream(paths: list[str], batch_pairs: int) -> Iterator[pa.Table]:
    """The same, by Ray Data and in order."""
    if not paths:
        return iter(())
    dataset = over([{"path": path} for path in paths]).map_batches(_read_window, batch_size=1, batch_format="pyarrow")
    return iter(dataset.iter_batches(batch_size=batch_pairs, batch_format="pyarrow", prefetch_batches=PREFETCH))


def _read_window(table: pa.Table) -> Iterator[pa.Table]:
    for path in table["path"].to_pylist():
        yield from row_groups(path)
