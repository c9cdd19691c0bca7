"""Scoring by the group of workers that trains: for a reference that no single GPU holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.cluster.scoring import score_on_group
from pipeline.data.tokenizer import pad_id
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.stages.jobs import make_job
from pipeline.stages.preflight import Inputs
from pipeline.store.cache import Cache
from pipeline.worker.feed import Feed
from pipeline.worker.job import Job
from pipeline.worker.unscored import Unscored


def score_by_trainers(
    place: Place, inputs: Inputs, items: list[dict[str, Any]], model: Weights, cache: Cache, stage: str
) -> int:
    """Score the rows of items into the cache; returns the peak memory of the largest worker, in bytes."""
    settings = place.config.reference
    parts = [item["path"] for item in items]
    unscored = Unscored(parts, cache.where, settings.batch_sequences, settings.batch_tokens)
    missing = sum(len(item["rows"]) // 4 for item in items)
    job = scoring_job(place, inputs, model)
    Path(job.note).unlink(missing_ok=True)  # of an attempt that ran out of memory
    done = score_on_group(place, stage, job, unscored, missing)
    if done.unshared is not None:
        place.terminal.note(f"every sequence repeats its prompt, here and in training: {done.unshared}")
    return done.peak_bytes


def scoring_job(place: Place, inputs: Inputs, model: Weights) -> Job:
    """A job of no steps: the model, sharded as [train] and [deepspeed] say."""
    return make_job(
        place.config,
        place.config.train,
        0,
        Feed([], 1, [], 1, appearing=False),
        pad_id(inputs.tokenizer),
        mixture=place.config.mixture,
        imitated=(),
        model=str(model.folder),
        weights="",
        logs=str(place.run_dir),
        checkpoints="",
        fingerprint="",
        guard_tolerance=None,
        evaluate_every=None,
        best_by=None,
        audit=False,
    )
