"""Tokens + a frozen model -> log-probs in the workspace's cache, by a pool of actors or by the trainers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpo.terms import reference_free
from pipeline.cluster.pool import Reading, on_pool
from pipeline.cluster.room import Ahead
from pipeline.cluster.scoring import score_on_group
from pipeline.data.tokenizer import pad_id
from pipeline.models.ask import scorer
from pipeline.models.device import device_of
from pipeline.models.identity import identity_of, versions
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.jobs import make_job
from pipeline.stages.preflight import Inputs
from pipeline.stages.reference import reference_of
from pipeline.store.artifacts import Artifact
from pipeline.store.cache import Cache
from pipeline.store.needed import look_up, read_sequences, wanted_rows
from pipeline.worker.feed import Feed
from pipeline.worker.job import Job
from pipeline.worker.unscored import Unscored

REFERENCE, EVALUATED = "reference", "evaluated policy"  # what a cache is used as


class Scores(NamedTuple):
    """The log-probs of sequences under one model."""

    cache: Cache
    identity: str
    scored: int
    reused: int
    model: Weights
    peak_bytes: int = 0


def score(place: Place, inputs: Inputs, tokens: Artifact, start: Weights, trains: bool = False) -> Made[Scores | None]:
    """Score what the cache lacks of all pairs, training and held-out, under the model that [reference] names.

    None where the loss looks at no reference. With reference.mode = "overlap" nothing is scored yet.

    Args:
        trains: whether the run goes on to training, whose nodes are then asked for before scoring ends.
    """
    config, model = place.config, reference_of(place, inputs, start)
    if reference_free(config.mixture):
        counts = {"sequences_scored": 0, "sequences_reused": 0}
        return Made(None, "nothing to do: the loss looks at no reference", counts)
    if config.reference.mode == "overlap":
        identity, meaning = identity_of(model, config.train.dtype)
        cache = place.cache(identity)
        cache.describe(meaning)
        cache.scored_with(versions())
        cache.used(REFERENCE)
        return Made(Scores(cache, identity, 0, 0, model), f"while training runs (reference {identity})")
    parts = tokens.paths("train/") + tokens.paths("eval/")
    scores = score_sequences(place, inputs, parts, model, "score", REFERENCE, Ahead(place) if trains else None)
    counts = {"sequences_scored": scores.scored, "sequences_reused": scores.reused}
    message = f"{scores.scored:,} sequences scored, {scores.reused:,} reused (reference {scores.identity})"
    return Made(scores, message, counts, scores.peak_bytes)


def score_sequences(
    place: Place,
    inputs: Inputs,
    parts: list[Path],
    model: Weights,
    stage: str,
    used_as: str,
    ahead: Ahead | None = None,
) -> Scores:
    """Score the sequences of token parts that the cache under this model's identity lacks.

    Args:
        stage: whose line of the terminal shows the progress.
        used_as: what the cache notes that it was used as.
        ahead: told of the progress.
    """
    identity, meaning = identity_of(model, place.config.train.dtype)
    cache = place.cache(identity)
    needed = look_up(cache, parts, place.terminal.note)
    items, missing, reused = wanted_rows(parts, needed.columns, needed.missing), len(needed.missing), len(needed.cached)
    cache.used(used_as)
    peak = 0
    if missing:
        cache.describe(meaning)
        cache.scored_with(versions())
    if missing and place.config.reference.by == "trainers":
        peak = _score_by_trainers(place, inputs, items, model, cache, stage)
    elif missing:
        done, actors = 0, place.config.reference.actors
        place.terminal.live(stage, f"starting {actors} actor(s), which load the model")
        for answer in scored_batches(place, inputs, items, model, cache):
            done, peak = done + answer["sequences"], max(peak, answer["peak_bytes"])
            place.terminal.live(stage, f"{done:,} of {missing:,} sequences", done, missing)
            if ahead is not None:
                ahead.look(done, missing)
    return Scores(cache, identity, missing, reused, model, peak)


def scored_batches(
    place: Place, inputs: Inputs, items: list[dict[str, Any]], model: Weights, cache: Cache, in_order: bool = False
) -> Iterator[dict[str, Any]]:
    """Score the rows of items into the cache; yields what the pool says of each finished batch: `sequences` it had.

    A reason why prompts cannot be shared is noted once.
    """
    rows = sum(len(item["rows"]) // 4 for item in items)
    reading = Reading(read_sequences, batch_rows(place, rows))
    noted = False
    for answer in on_pool(place, items, scorer, scorer_options(place, inputs, model, cache), reading, in_order):
        if answer["unshared"] and not noted:
            place.terminal.note(f"every sequence repeats its prompt, here and in training: {answer['unshared']}")
            noted = True
        yield answer


def batch_rows(place: Place, rows: int) -> int:
    """Sequences that an actor is handed at once: enough batches for every actor, none larger than it holds."""
    config = place.config.reference
    return min(config.batch_sequences, max(1, -(-rows // config.actors)))


def scorer_options(place: Place, inputs: Inputs, model: Weights, cache: Cache) -> dict[str, Any]:
    """The keywords of a scorer as configured."""
    config = place.config.reference
    return {
        "folder": str(model.folder),
        "worn": model.worn,
        "cache": cache.where,
        "dtype": place.config.train.dtype,
        "pad_id": pad_id(inputs.tokenizer),
        "batch_tokens": config.batch_tokens,
        "may_share": place.config.train.share_prompts,
        "device": device_of(config.cpus_per_actor, config.actors, config.gpus_per_actor),
    }


def _score_by_trainers(
    place: Place, inputs: Inputs, items: list[dict[str, Any]], model: Weights, cache: Cache, stage: str
) -> int:
    """Score the rows of items on the workers that train; returns the largest worker's peak memory, in bytes."""
    settings = place.config.reference
    parts = [item["path"] for item in items]
    unscored = Unscored(parts, cache.where, settings.batch_sequences, settings.batch_tokens)
    missing = sum(len(item["rows"]) // 4 for item in items)
    job = _scoring_job(place, inputs, model)
    done = score_on_group(place, stage, job, unscored, missing)
    if done.unshared is not None:
        place.terminal.note(f"every sequence repeats its prompt, here and in training: {done.unshared}")
    return done.peak_bytes


def _scoring_job(place: Place, inputs: Inputs, model: Weights) -> Job:
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
        worn=model.worn,
        weights="",
        logs=str(place.run_dir),
        checkpoints="",
        fingerprint="",
        guard_tolerance=None,
        evaluate_every=None,
        best_by=None,
        audit=False,
    )
