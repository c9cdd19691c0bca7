"""Tokens + the initial policy -> the policy that preference training starts from, which is also its reference."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.claim import FREE
from pipeline.cluster.group import run_group
from pipeline.cluster.items import Each
from pipeline.cluster.shuffle import write_epoch
from pipeline.data.sources import file_weights
from pipeline.data.tokenizer import pad_id
from pipeline.models.start import InitialPolicy, Weights, complete, second_rate, trained_digest, trained_from, worn_by
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.jobs import make_job
from pipeline.stages.preflight import Inputs
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact, fingerprint, seal, take_up
from pipeline.store.lease import Lease, owned_in_turn
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
        given = start.adapter is not None and start.adapter.given
        worn = f" with the adapter {start.adapter.folder}" if given and start.adapter is not None else ""
        return Made(start, f"off; the policy starts from {start.folder}{worn}{random}")
    # Neither the number of workers nor the ZeRO stage: they share out the same sums.
    made_of = {
        "stage": "sft",
        "format": FORMAT_VERSION,
        "tokens": tokens.fingerprint,
        "start": start.mark,
        "sft": settings.model_dump(exclude=FREE["sft"]),
        "dtype": place.config.train.dtype,
        "seed": place.config.run.seed,
    }
    if second_rate(place.config) != 1:
        made_of["second_rate"] = second_rate(place.config)
    weights = file_weights(inputs.files)
    if weights:
        made_of["weights"] = weights
    folder = place.workspace / "sft" / fingerprint(made_of)
    made = take_up(folder, made_of, place.terminal.note)
    message, peak = f"done before: loss {{:.4f}} ({folder})", 0
    if made is None:
        with _turn(place, folder) as lease:
            made = take_up(folder, made_of, place.terminal.note)  # another run may have made it meanwhile
            if made is None:
                made, peak = _train(place, inputs, each, tokens, start, folder, made_of, lease)
                message = f"{made.counts['steps']:,} steps, loss {{:.4f}}"
    result = trained_from(place, start, folder / run_files.MODEL, made.counts["weights"])
    return Made(result, message.format(made.counts["loss_last"]), peak_bytes=peak)


def _turn(place: Place, folder: Path) -> AbstractContextManager[Lease]:
    """Own a folder of the workspace where checkpoints stay from one run to another; whoever comes later waits."""

    def waiting(holder: str) -> None:
        place.terminal.live("sft", f"waiting for {holder}, which trains the same")

    return owned_in_turn(folder.with_name(f"{folder.name}.{run_files.LEASE}"), place.terminal.note, waiting)


def _train(
    place: Place,
    inputs: Inputs,
    each: Each,
    tokens: Artifact,
    start: Weights,
    folder: Path,
    made_of: dict[str, Any],
    lease: Lease,
) -> tuple[Artifact, int]:
    """Make the artifact where it stays, under its lease; returns it with the peak memory of the largest worker."""
    settings, seed = place.config.sft, place.config.run.seed
    epochs, weights = folder / run_files.EPOCHS, file_weights(inputs.files)
    model, checkpoints = folder / run_files.MODEL, folder / run_files.CHECKPOINTS
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and path != checkpoints:
            shutil.rmtree(path)
        elif path.is_file() and not checkpoints.exists():
            path.unlink()
    model.mkdir(parents=True)
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
        **worn_by(place, start),
        weights=str(model),
        logs=str(folder),
        checkpoints=str(checkpoints),
        fingerprint=fingerprint(made_of),
        guard_tolerance=None,
        evaluate_every=None,
        best_by=None,
        audit=False,
        lease=(str(lease.path), lease.token),
    )
    done = run_group(place, "sft", job, feed)
    complete(model, start, place.config.train.dtype)
    shutil.rmtree(epochs)
    counts = {"steps": done.steps, "loss_last": done.loss_last, "weights": trained_digest(model)}
    files = seal(folder, made_of, counts, but=run_files.CHECKPOINTS)
    shutil.rmtree(checkpoints)
    return Artifact(folder, fingerprint(made_of), counts, files), done.peak_bytes
