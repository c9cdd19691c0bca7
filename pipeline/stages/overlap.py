"""Scoring while training runs: the windows of the ordered epochs get their log-probs one after the other.

The ordered windows wait without log-probs. One pool of actors scores what the cache lacks in the order in which
training needs it; as soon as all of a window is there, it is joined and appears, whole, where the workers wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dpo.lm.whole_folder import temporary
from pipeline.cluster.connect import connect
from pipeline.place import Place
from pipeline.stages.order import Epochs
from pipeline.stages.preflight import Inputs
from pipeline.stages.score import scored_batches
from pipeline.store.cache import keys_of
from pipeline.store.needed import all_keys, look_up, wanted_rows
from pipeline.store.parquet import write_parquet
from pipeline.store.windows import with_logps
from pipeline.worker.feed import FAILED


class Scored:
    """Counts of what was scored beside training."""

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self.peak_bytes = 0


@contextmanager
def scoring_meanwhile(place: Place, inputs: Inputs, epochs: Epochs) -> Iterator[Scored]:
    """Score and join in a thread while the body trains; nothing where everything is scored already.

    Yields the counts; they are complete once the body is left.

    Raises:
        InputError, RunError: what the thread ran into; the workers stop then.
    """
    if epochs.pending is None:
        yield Scored()
        return
    connect(place)
    work = _Work(place, inputs, epochs)
    thread = threading.Thread(target=work.run)
    thread.start()
    try:
        yield work.scored
    except BaseException:
        work.stop.set()
        raise
    finally:
        thread.join()
        if work.error is not None:
            raise work.error


class _Work:
    """Scores the windows in a thread and joins them."""

    def __init__(self, place: Place, inputs: Inputs, epochs: Epochs):
        assert epochs.pending is not None
        self.place, self.inputs, self.model = place, inputs, epochs.pending.model
        self.feed, self.cache, self.scored = epochs.feed, epochs.pending.cache, Scored()
        self.folder = Path(self.feed.epochs[0][0]).parents[1]
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        (self.folder / FAILED).unlink(missing_ok=True)
        try:
            self._run()
        except BaseException as error:  # told to whoever trains, and raised again beside it
            self.error = error
            (self.folder / FAILED).write_text(str(error), encoding="utf-8")

    def _run(self) -> None:
        for path in [*self.feed.held_out, *(path for epoch in self.feed.epochs for path in epoch)]:
            Path(path).unlink(missing_ok=True)  # of an earlier command; no manifest vouches for it
        # The first window, then the held-out pairs, which the first evaluation may ask for, then the rest.
        first, *rest = self.feed.epochs[0]
        order = [first, *self.feed.held_out, *rest]
        sources = [_source(Path(path)) for path in order]
        needed = look_up(self.cache, sources, self.place.terminal.note)
        items = wanted_rows(sources, needed.columns, needed.missing)
        missing = {item["path"]: len(item["rows"]) // 4 for item in items}
        self.scored.counts = {"sequences_scored": len(needed.missing), "sequences_reused": len(needed.cached)}
        results = scored_batches(self.place, self.inputs, items, self.model, self.cache, in_order=True)
        done = due = 0
        for path, source in zip(order, sources, strict=True):
            due += missing.get(str(source), 0)
            while done < due and not self.stop.is_set():
                answer = next(results)
                done += answer["sequences"]
                self.scored.peak_bytes = max(self.scored.peak_bytes, answer["peak_bytes"])
            self._join(Path(path), source)
        for later in self.feed.epochs[1:]:
            for path in later:
                self._join(Path(path), _source(Path(path)))

    def _join(self, path: Path, source: Path) -> None:
        """Write a window with its log-probs."""
        if self.stop.is_set():
            return
        tokens = pq.read_table(source)
        keys = all_keys([(keys_of(tokens["chosen_key"]), keys_of(tokens["rejected_key"]))])
        joined = with_logps(tokens, self.cache.select(keys))
        beside = temporary(path)
        write_parquet(beside, joined.combine_chunks(), row_group_size=self.feed.batch_pairs)
        beside.replace(path)


def _source(path: Path) -> Path:
    """The path of a window before it has log-probs: epochs/0/window for epochs/joined/0/window."""
    return path.parents[2] / path.parent.name / path.name
