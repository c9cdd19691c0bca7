"""The start + ordered epochs -> the aligned policy's weights, by DeepSpeed ZeRO on a group of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.terms import reference_free
from pipeline.claim import FREE, WAY_OUT
from pipeline.cluster.group import run_group
from pipeline.config import Config
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.data.tokenizer import pad_id
from pipeline.errors import InputError
from pipeline.models.identity import identity_of
from pipeline.models.start import Weights, complete, second_rate, trained_digest, trained_from, worn_by
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.jobs import make_job
from pipeline.stages.order import Epochs
from pipeline.stages.overlap import scoring_meanwhile
from pipeline.stages.preflight import Inputs
from pipeline.stages.prompts import questions_of
from pipeline.stages.reference import compared_as, reference_of
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST, Artifact, begin, commit, fingerprint, take_whole
from pipeline.store.records import read_manifest
from pipeline.worker.job import Best, Job, Questions

FORMAT_VERSION = 3
ADVICE = "Move that folder elsewhere, and run the same command again: training goes on from the last checkpoint."
GUARD_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.005}  # nats per token; kernels regroup sums, and bf16 rounds


def train(place: Place, inputs: Inputs, tokens: Artifact, start: Weights, epochs: Epochs) -> Made[Weights]:
    """Train by preference into `runs/<name>/weights`. Killed, it goes on from the last checkpoint when run again."""
    config = place.config
    made_of = {
        "stage": "train",
        "format": FORMAT_VERSION,
        "epochs": epochs.artifact.fingerprint,
        "start": start.mark,
        "loss": config.loss.model_dump(),
        "train": config.train.model_dump(exclude=FREE["train"]),
        "deepspeed": deepspeed_settings(config.train, config.deepspeed),
    }
    if second_rate(config) != 1:
        made_of["second_rate"] = second_rate(config)
    if config.evaluate.best_by is not None:
        made_of["best"] = [config.evaluate.best_by, config.evaluate.every_steps]
    folder = place.run_dir / run_files.WEIGHTS
    made, scored, peak = finished(place, folder, made_of), {}, 0
    if made is None:
        own = begin(folder)
        questions = questions_of(place, inputs, tokens, start.folder)
        job = preference_job(place, inputs, start, epochs, own, fingerprint(made_of), questions)
        with scoring_meanwhile(place, inputs, epochs) as beside:
            done = run_group(place, "train", job, epochs.feed)
        scored, peak = beside.counts, max(beside.peak_bytes, done.peak_bytes)
        if done.compared is not None:
            place.terminal.note(f"{'train':<9} {done.compared}")
        complete(own, start, config.train.dtype)
        counts = {"steps": done.steps, "loss_first": done.loss_first, "loss_last": done.loss_last}
        counts |= {"weights_step": done.weights_step, "best": done.best, "baseline": done.baseline}
        made = commit(own, folder, made_of, {**counts, "weights": trained_digest(own)})
    counts = {key: made.counts[key] for key in ("steps", "weights_step", "loss_first", "loss_last")}
    message = f"{counts['steps']:,} steps, loss {counts['loss_first']:.4g} -> {counts['loss_last']:.4g}"
    if made.counts["best"] is not None:
        message = _chosen(Best(*made.counts["best"]), counts["weights_step"], config)
    result = trained_from(place, start, folder, made.counts["weights"])._replace(baseline=made.counts["baseline"])
    return Made(result, message, {**scored, **counts}, peak)


def finished(place: Place, folder: Path, made_of: dict[str, Any]) -> Artifact | None:
    """The weights that were trained under the run's name; those that an earlier version trained alike count, too.

    Raises:
        InputError: the weights are damaged, or were trained of something else. They are never trained over.
    """
    there = read_manifest(folder / MANIFEST)
    if there is not None and there.fingerprint != fingerprint(made_of):
        other = sorted(
            key for key in made_of.keys() | there.made_of.keys() if there.made_of.get(key) != made_of.get(key)
        )
        if other != ["format"]:
            raise InputError(
                f"{folder} was trained of something else: {', '.join(other)} differ, by this version of the program. "
                f"Finished weights are not replaced. {WAY_OUT}"
            )
        place.terminal.note(f"{'train':<9} the weights were trained by another version, and are kept")
        made_of = there.made_of
    return take_whole(folder, made_of, ADVICE)


def _chosen(best: Best, weights_step: int, config: Config) -> str:
    said = f"the best evaluation, {config.evaluate.best_by} {best.value:.4g}, is that after step {best.step:,}"
    if best.step != weights_step:
        return f"{said}; its checkpoint {best.checkpoint} was damaged since, so the last weights are exported"
    return f"{said}; its weights are exported"


def guard_tolerance(config: Config) -> float:
    """Mean difference, in nats per token, up to which policy and reference are one model without a further look."""
    return config.reference.guard_tolerance or GUARD_TOLERANCE[config.train.dtype]


def preference_job(
    place: Place,
    inputs: Inputs,
    start: Weights,
    epochs: Epochs,
    weights: Path,
    identity: str,
    questions: Questions | None = None,
) -> Job:
    """The job of the workers; `identity` names the checkpoints that they may go on from."""
    config, reference = place.config, reference_of(place, inputs, start)
    return make_job(
        config,
        config.train,
        epochs.steps_per_epoch,
        epochs.feed,
        pad_id(inputs.tokenizer),
        mixture=config.mixture,
        imitated=(),
        model=str(start.folder),
        **worn_by(place, start),
        compared=compared_as(place, start, reference),
        reference=identity_of(reference, config.train.dtype)[0],
        acts=start.adapter is not None and start.adapter.given and not start.adapter.neutral,
        weights=str(weights),
        logs=str(place.run_dir),
        checkpoints=str(place.run_dir / run_files.CHECKPOINTS),
        fingerprint=identity,
        guard_tolerance=None if reference_free(config.mixture) else guard_tolerance(config),
        guard_allows_rounding=config.reference.guard_tolerance is None,
        evaluate_every=config.evaluate.every_steps if epochs.feed.held_out else None,
        best_by=config.evaluate.best_by if epochs.feed.held_out else None,
        questions=questions,
        audit=config.run.audit,
        lease=(str(place.lease.path), place.lease.token) if place.lease is not None else None,
    )
