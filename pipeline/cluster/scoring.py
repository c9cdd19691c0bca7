"""Unscored sequences -> log-probs in the cache, by the group of workers that trains."""

from __future__ import annotations

import threading
from functools import partial

from pipeline.cluster.group import on_group
from pipeline.place import Place
from pipeline.report.terminal import beside
from pipeline.store.cache import Cache
from pipeline.worker.job import Job
from pipeline.worker.unscored import Scored, Unscored

LOOK_SECONDS = 2.0  # between two looks at how much is scored


def score_on_group(place: Place, stage: str, job: Job, unscored: Unscored, missing: int) -> Scored:
    """Score on the configured workers until nothing is missing.

    Args:
        missing: how many sequences the cache lacks.

    Raises:
        InputError: what a worker found to be the user's to mend.
        RunError: workers were lost more often than train.max_failures allows.
    """
    return on_group(place, stage, job, unscored, beside(partial(_follow, place, stage, Cache(unscored.cache), missing)))


def _follow(place: Place, stage: str, cache: Cache, missing: int, stop: threading.Event) -> None:
    """Show by how many rows the cache has grown."""
    before = cache.rows()
    while not stop.wait(LOOK_SECONDS):
        done = cache.rows() - before
        said = f"{done:,} of {missing:,} sequences" if done else "starting workers, which load the model"
        place.terminal.live(stage, said, *((done, missing) if done else ()))
