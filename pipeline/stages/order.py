"""Tokens + reference log-probs -> the epochs in training order, and the held-out pairs in file order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from pipeline.cluster.items import Each
from pipeline.cluster.shuffle import write_epoch
from pipeline.data.sources import file_weights
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.preflight import Inputs
from pipeline.stages.score import Scores
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact, Files, begin, commit, take_up
from pipeline.store.windows import Order
from pipeline.worker.feed import JOINED, Feed, make_feed

FORMAT_VERSION = 2


class Epochs(NamedTuple):
    """The ordered epochs of a run."""

    artifact: Artifact
    feed: Feed
    steps_per_epoch: int
    pending: Scores | None  # where windows get their log-probs while training runs


def order(place: Place, inputs: Inputs, each: Each, tokens: Artifact, scores: Scores | None) -> Made[Epochs]:
    """Write `epochs/<e>/window-*.parquet` of the run: step k is rows [kB, (k+1)B), on any number of workers."""
    train, seed = place.config.train, place.config.run.seed
    made_of = {
        "stage": "order",
        "format": FORMAT_VERSION,
        "tokens": tokens.fingerprint,
        "reference": scores.identity if scores is not None else None,
        "seed": seed,
        "epochs": train.epochs,
        "batch_pairs": train.batch_pairs,
    }
    weights = file_weights(inputs.files)
    if weights:
        made_of["weights"] = weights
    reference = place.config.reference
    pending = scores if reference.mode == "overlap" else None
    if pending is not None:
        made_of["overlap_steps"] = reference.overlap_steps
    folder = place.run_dir / run_files.EPOCHS
    artifact = take_up(folder, made_of, place.terminal.note)
    if artifact is None:
        own = begin(folder)
        cache = scores.cache if scores is not None and pending is None else None
        size = reference.overlap_steps if pending is not None else None
        parts, held_out = tokens.paths("train/"), tokens.paths("eval/")
        found = {
            str(e): write_epoch(each, parts, cache, Order(seed, e, weights), train.batch_pairs, own / str(e), size)
            for e in range(train.epochs)
        }
        windows = found["0"]
        if held_out:
            found["eval"] = write_epoch(each, held_out, cache, Order(seed, None), train.batch_pairs, own / "eval", size)
        files = {f"{epoch}/{name}": entry for epoch, each_ in found.items() for name, entry in each_.files.items()}
        counts = {"rows": windows.rows, "steps": windows.steps, "steps_per_window": windows.steps_per_window}
        if pending is not None:
            files |= _prepare_joined(own, files)
        artifact = commit(own, folder, made_of, counts, files)
    counts = artifact.counts
    steps = f"{counts['rows']:,} pairs in {counts['steps']:,} steps of up to {train.batch_pairs}"
    message = f"epochs: {train.epochs}, each {steps}" + (" (sources are weighted)" if weights else "")
    feed = make_feed(folder, train.epochs, counts["steps_per_window"], train.batch_pairs, pending is not None)
    return Made(Epochs(artifact, feed, counts["steps"], pending), message, {"pairs_per_epoch": counts["rows"]})


def _prepare_joined(folder: Path, files: Files) -> Files:
    """Beside each window to come, the lengths of its rows, which are known; returns their entries."""
    copies = {}
    for name, entry in files.items():
        if name.endswith(".npz"):
            target = folder / JOINED / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
            copies[f"{JOINED}/{name}"] = entry
    return copies
