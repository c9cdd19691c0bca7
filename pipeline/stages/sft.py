"""Tokens + the initial policy -> the policy that preference training starts from, which is also its reference."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dpo.lm.weight_files import weights_digest
from pipeline.claim import FREE
from pipeline.cluster.group import run_group
from pipeline.cluster.items import Each
from pipeline.cluster.shuffle import write_epoch
from pipeline.data.sources import file_weights
from pipeline.data.tokenizer import pad_id
from pipeline.models.start import InitialPolicy, Weights, complete
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.jobs import make_job
from pipeline.stages.preflight import Inputs
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact, begin, commit, find, fingerprint
from pipeline.store.windows import Order
from pipeline.worker.feed import make_feed

FORMAT_VERSION = 2
SIDES = {"chosen": ("chosen",), "both": ("chosen", "rejected")}


def sft(place: Place, inputs: Inputs, each: Each, policy: InitialPolicy, tokens: Artifact) -> Made[Weights]:
    """Train on completions as `[sft]` says, into `sft/<fingerprint>/model` of the workspace; with 0 epochs do nothing.

    The result is kept by what made it, so that runs with another loss share it, and with it their reference.
    """
    start = policy.weights()
    settings = place.config.sft
    if settings.epochs == 0:
        random = ", random weights" if place.config.policy.path is None else ""
        return Made(start, f"off; the policy starts from {start.folder}{random}")
    # Neither the number of workers nor the ZeRO stage: they share out the same sums.
    made_of = {
        "stage": "sft",
        "format": FORMAT_VERSION,
        "tokens": tokens.fingerprint,
        "start": start.digest,
        "sft": settings.model_dump(exclude=FREE["sft"]),
        "dtype": place.config.train.dtype,
        "seed": place.config.run.seed,
    }
    weights = file_weights(inputs.files)
    if weights:
        made_of["weights"] = weights
    folder = place.workspace / "sft" / fingerprint(made_of)
    made = find(folder, made_of)
    message, peak = f"done before: loss {{:.4f}} ({folder})", 0
    if made is None:
        made, peak = _train(place, inputs, each, tokens, start, folder, made_of)
        message = f"{made.counts['steps']:,} steps, loss {{:.4f}}"
    result = Weights(folder / run_files.MODEL, made.counts["weights"])
    return Made(result, message.format(made.counts["loss_last"]), peak_bytes=peak)


def _train(
    place: Place,
    inputs: Inputs,
    each: Each,
    tokens: Artifact,
    start: Weights,
    folder: Path,
    made_of: dict[str, Any],
) -> tuple[Artifact, int]:
    """Make the artifact; returns it with the peak memory of the largest worker."""
    settings, seed = place.config.sft, place.config.run.seed
    epochs, weights = folder / run_files.EPOCHS, file_weights(inputs.files)
    if folder.exists() and not (folder / run_files.CHECKPOINTS).exists():
        begin(folder)
    shutil.rmtree(epochs, ignore_errors=True)
    model = folder / run_files.MODEL
    model.mkdir(parents=True, exist_ok=True)
    *_, windows = [
        write_epoch(each, tokens.paths("train/"), None, Order(seed, e, weights), settings.batch_pairs, epochs / str(e))
        for e in range(settings.epochs)
    ]
    feed = make_feed(epochs, settings.epochs, windows.steps_per_window, settings.batch_pairs)
    job = make_job(
        place.config,
        settings,
        windows.steps,
        feed,
        pad_id(inputs.tokenizer),
        mixture=(),
        imitated=SIDES[settings.completions],
        model=str(start.folder),
        weights=str(model),
        logs=str(folder),
        checkpoints=str(folder / run_files.CHECKPOINTS),
        fingerprint=fingerprint(made_of),
        guard_tolerance=None,
        evaluate_every=None,
        best_by=None,
        audit=False,
    )
    done = run_group(place, "sft", job, feed)
    complete(model, start.folder, place.config.train.dtype)
    shutil.rmtree(epochs)
    shutil.rmtree(folder / run_files.CHECKPOINTS)
    counts = {"steps": done.steps, "loss_last": done.loss_last, "weights": weights_digest(model)}
    return commit(folder, made_of, counts), done.peak_bytes
