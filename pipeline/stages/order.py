"""Tokens + reference log-probs -> the epochs in training order, and the held-out pairs in file order."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.place import Place
from pipeline.stages.cluster import connect
from pipeline.stages.fit import Feed, make_feed
from pipeline.stages.score import Scores
from pipeline.stages.shuffle import Order, write_epoch
from pipeline.store.artifacts import Artifact, begin, commit, find

FORMAT = 2


class Epochs(NamedTuple):
    """The ordered epochs of a run."""

    artifact: Artifact
    feed: Feed
    steps_per_epoch: int


def order(place: Place, tokens: Artifact, scores: Scores | None) -> Epochs:
    """Write `epochs/<e>/window-*.parquet` of the run: step k is rows [kB, (k+1)B), on any number of workers."""
    train, seed = place.config.train, place.config.run.seed
    made_of = {
        "stage": "order",
        "format": FORMAT,
        "tokens": tokens.fingerprint,
        "reference": scores.identity if scores is not None else None,
        "seed": seed,
        "epochs": train.epochs,
        "batch_pairs": train.batch_pairs,
    }
    folder = place.run_dir / "epochs"
    artifact = find(folder, made_of)
    if artifact is None:
        connect(place)
        begin(folder)
        cache = scores.cache if scores is not None else None
        parts, held_out = tokens.paths("train/"), tokens.paths("eval/")
        *_, windows = [
            write_epoch(parts, cache, Order(seed, e), train.batch_pairs, folder / str(e)) for e in range(train.epochs)
        ]
        if held_out:
            write_epoch(held_out, cache, Order(seed, None), train.batch_pairs, folder / "eval")
        counts = {"rows": windows.rows, "steps": windows.steps, "steps_per_window": windows.steps_per_window}
        artifact = commit(folder, made_of, counts)
    counts = artifact.counts
    place.terminal.say(f"epochs: {train.epochs}, each {counts['steps']:,} steps of up to {train.batch_pairs} pairs")
    return Epochs(
        artifact, make_feed(folder, train.epochs, counts["steps_per_window"], train.batch_pairs), counts["steps"]
    )
