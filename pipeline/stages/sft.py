"""Tokens + the initial policy -> the policy that preference training starts from, which is also its reference."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo.lm.weight_files import weights_digest
from pipeline.place import FREE, Place
from pipeline.sources import file_weights
from pipeline.stages.cluster import connect
from pipeline.stages.fit import fit, make_feed, make_job
from pipeline.stages.shuffle import Order, write_epoch
from pipeline.stages.start import Start, initial_policy
from pipeline.store.artifacts import Artifact, begin, commit, find, fingerprint
from pipeline.worker.objectives import Supervised

FORMAT = 2
SIDES = {"chosen": ("chosen",), "both": ("chosen", "rejected")}


def sft(place: Place, tokens: Artifact) -> Start:
    """Train on completions as `[sft]` says, into `sft/<fingerprint>/model` of the workspace; with 0 epochs do nothing.

    The result is kept by what made it, so that runs with another loss share it, and with it their reference.
    """
    start = initial_policy(place)
    settings = place.config.sft
    if settings.epochs == 0:
        random = ", random weights" if place.config.policy.path is None else ""
        place.terminal.say(f"off; the policy starts from {start.folder}{random}")
        return start
    # Neither the number of workers nor the ZeRO stage: they share out the same sums.
    made_of = {
        "stage": "sft",
        "format": FORMAT,
        "tokens": tokens.fingerprint,
        "start": start.digest,
        "sft": settings.model_dump(exclude=FREE["sft"]),
        "dtype": place.config.train.dtype,
        "seed": place.config.run.seed,
    }
    weights = file_weights(place)
    if weights:
        made_of["weights"] = weights
    folder = place.workspace / "sft" / fingerprint(made_of)
    made = find(folder, made_of)
    if made is None:
        made = _train(place, tokens, start, folder, made_of)
        place.terminal.say(f"{made.counts['steps']:,} steps, loss {made.counts['loss_last']:.4f}")
    else:
        place.terminal.say(f"done before: loss {made.counts['loss_last']:.4f} ({folder})")
    return Start(folder / "model", made.counts["weights"])


def _train(place: Place, tokens: Artifact, start: Start, folder: Path, made_of: dict[str, object]) -> Artifact:
    settings, seed = place.config.sft, place.config.run.seed
    connect(place)
    epochs, weights = folder / "epochs", file_weights(place)
    if folder.exists() and not (folder / "checkpoints").exists():
        begin(folder)
    shutil.rmtree(epochs, ignore_errors=True)
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    *_, windows = [
        write_epoch(tokens.paths("train/"), None, Order(seed, e, weights), settings.batch_pairs, epochs / str(e))
        for e in range(settings.epochs)
    ]
    feed = make_feed(epochs, settings.epochs, windows.steps_per_window, settings.batch_pairs)
    job = make_job(
        place,
        settings,
        windows.steps,
        feed,
        objective=Supervised(SIDES[settings.completions]),
        model=str(start.folder),
        weights=str(model),
        logs=str(folder),
        checkpoints=str(folder / "checkpoints"),
        fingerprint=fingerprint(made_of),
        guard_tolerance=None,
        evaluate_every=None,
        best_by=None,
        audit=False,
    )
    done = fit(place, "sft", job, feed)
    copy_config(start.folder, model)
    shutil.rmtree(epochs)
    shutil.rmtree(folder / "checkpoints")
    counts = {"steps": done.steps, "loss_last": done.loss_last, "weights": weights_digest(model)}
    return commit(folder, made_of, counts)


def copy_config(source: Path, target: Path) -> None:
    """What a model folder holds beside its weights and tokenizer."""
    for name in ("config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
