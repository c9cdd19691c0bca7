"""The start + ordered epochs -> the aligned policy's weights, by DeepSpeed ZeRO on a group of workers."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo.lm.weight_files import weights_digest
from dpo.terms import reference_free
from pipeline.claim import FREE
from pipeline.cluster.group import run_group
from pipeline.config import Config
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.data.tokenizer import pad_id
from pipeline.models.start import Weights, complete
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.jobs import make_job
from pipeline.stages.order import Epochs
from pipeline.stages.overlap import scoring_meanwhile
from pipeline.stages.preflight import Inputs
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST, commit, find, fingerprint
from pipeline.worker.job import Best, Job

FORMAT_VERSION = 3
GUARD_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # nats per token; kernels regroup sums, and bf16 rounds


def train(place: Place, inputs: Inputs, start: Weights, epochs: Epochs) -> Made[Weights]:
    """Train by preference into `runs/<name>/weights`. Killed, it goes on from the last checkpoint when run again."""
    config = place.config
    made_of = {
        "stage": "train",
        "format": FORMAT_VERSION,
        "epochs": epochs.artifact.fingerprint,
        "start": start.digest,
        "loss": config.loss.model_dump(),
        "train": config.train.model_dump(exclude=FREE["train"]),
        "deepspeed": deepspeed_settings(config.train, config.deepspeed),
    }
    if config.evaluate.best_by is not None:
        made_of["best"] = [config.evaluate.best_by, config.evaluate.every_steps]
    folder = place.run_dir / run_files.WEIGHTS
    made, scored, peak = find(folder, made_of), {}, 0
    if made is None:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        job = preference_job(place, inputs, start, epochs, folder, fingerprint(made_of))
        with scoring_meanwhile(place, inputs, start, epochs) as beside:
            done = run_group(place, "train", job, epochs.feed)
        scored, peak = beside.counts, max(beside.peak_bytes, done.peak_bytes)
        complete(folder, start.folder, config.train.dtype)
        counts = {"steps": done.steps, "loss_first": done.loss_first, "loss_last": done.loss_last}
        counts |= {"weights_step": done.weights_step, "best": done.best, "baseline": done.baseline}
        made = commit(folder, made_of, {**counts, "weights": weights_digest(folder)})
    counts = {key: made.counts[key] for key in ("steps", "weights_step", "loss_first", "loss_last")}
    message = f"{counts['steps']:,} steps, loss {counts['loss_first']:.4g} -> {counts['loss_last']:.4g}"
    if made.counts["best"] is not None:
        message = _chosen(Best(*made.counts["best"]), counts["weights_step"], config)
    result = Weights(folder, made.counts["weights"], made.counts["baseline"])
    return Made(result, message, {**scored, **counts}, peak)


def _chosen(best: Best, weights_step: int, config: Config) -> str:
    said = f"the best evaluation, {config.evaluate.best_by} {best.value:.4g}, is that after step {best.step:,}"
    if best.step != weights_step:
        return f"{said}; its checkpoint {best.checkpoint} was damaged since, so the last weights are exported"
    return f"{said}; its weights are exported"


def guard_tolerance(config: Config) -> float:
    """Mean difference, in nats per token, up to which two log-probs of one model are the same."""
    return config.reference.guard_tolerance or GUARD_TOLERANCE[config.train.dtype]


def preference_job(place: Place, inputs: Inputs, start: Weights, epochs: Epochs, weights: Path, identity: str) -> Job:
    """The job of the workers; `identity` names the checkpoints that they may go on from."""
    config = place.config
    return make_job(
        config,
        config.train,
        epochs.steps_per_epoch,
        epochs.feed,
        pad_id(inputs.tokenizer),
        mixture=config.mixture,
        imitated=(),
        model=str(start.folder),
        weights=str(weights),
        logs=str(place.run_dir),
        checkpoints=str(place.run_dir / run_files.CHECKPOINTS),
        fingerprint=identity,
        guard_tolerance=None if reference_free(config.mixture) else guard_tolerance(config),
        evaluate_every=config.evaluate.every_steps if epochs.feed.held_out else None,
        best_by=config.evaluate.best_by if epochs.feed.held_out else None,
        audit=config.run.audit,
    )
