"""A job -> trained weights, or log-probs: one Ray Train worker group, fed by Ray Data."""

from __future__ import annotations

import shutil
import time
import uuid
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.cluster.connect import connect, joined
from pipeline.cluster.errors import own_interrupts, translated_errors
from pipeline.cluster.lost import Losses, lost_note, telling
from pipeline.cluster.process_group import ProcessGroup
from pipeline.cluster.room import wait_for_workers
from pipeline.cluster.signals import stopping_after_a_checkpoint
from pipeline.cluster.steps import Steps
from pipeline.errors import InputError, RunError
from pipeline.place import Place
from pipeline.process import end_quickly
from pipeline.report.following import following
from pipeline.store import run_files
from pipeline.worker.feed import Feed
from pipeline.worker.job import Done, Job
from pipeline.worker.unscored import Scored, Unscored

LESS = "train.micro_batch_tokens, or set train.activation_checkpointing = true"
STARTUP_RETRIES = 3  # of a worker group that finds no room; without a limit Ray would try for ever
IDLE = {"DatasetsCallback"}  # serves data sets that are handed to the trainer; workers read their own
IDLE_LOCALLY = {"PlacementGroupCleanerCallback"}  # frees what a killed driver held; a local Ray ends with its driver


def run_group(place: Place, stage: str, job: Job, feed: Feed) -> Done:
    """Train on the configured workers until the job is done.

    Raises:
        InputError, RunError: as `on_group`.
    """
    metrics, attempts = Path(job.logs) / run_files.METRICS, Path(job.checkpoints) / run_files.ATTEMPTS
    answer = on_group(place, stage, job, feed, following(place.terminal, stage, metrics, job.steps, attempts))
    if job.may_share and answer.unshared is not None:
        place.terminal.note(f"{stage:<9} every sequence repeats its prompt: {answer.unshared}")
    return answer


def on_group(place: Place, stage: str, job: Job, work: Feed | Unscored, shown: AbstractContextManager[None]) -> Any:
    """Let the configured workers train on a feed, or score what is unscored; returns the answer of the first of them.

    Args:
        shown: a context that shows their progress.

    Raises:
        InputError: what a worker found to be the user's to mend.
        RunError: workers were lost more often than train.max_failures allows.
    """
    connect(place)
    wait_for_workers(place)
    cluster = place.config.cluster
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker, **cluster.resources}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    elastic = cluster.least_workers < cluster.most_workers
    storage, status = Path(job.logs) / "ray", Path(job.logs) / run_files.STATUS
    trainer = _Trainer(
        _worker,
        local=joined(place.config) is None,
        train_loop_config={"job": job, "work": work},
        backend_config=ProcessGroup(gpus=bool(cluster.gpus_per_worker)),
        scaling_config=ScalingConfig(
            num_workers=(cluster.least_workers, cluster.most_workers) if elastic else cluster.most_workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
            label_selector=cluster.labels or None,
        ),
        run_config=RunConfig(
            name=f"{stage}-{uuid.uuid4().hex[:8]}",  # Ray keeps no state for us between two fits
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=place.config.train.max_failures, controller_failure_limit=STARTUP_RETRIES
            ),
            callbacks=[Losses(lost_note(job), status, job.checkpoints, place.config.train.max_failures + 1)],
            logging_config=ray.train.LoggingConfig(log_level="INFO" if place.config.report.ray_logs else "ERROR"),
        ),
    )
    trains = partial(_trains, Path(job.logs) / run_files.METRICS, time.time())
    say = partial(place.terminal.note, f"{stage:<9} stopping after this step, with a checkpoint; Ctrl-C stops at once")
    stopping = stopping_after_a_checkpoint(Path(job.stop), trains, say)
    with stopping, own_interrupts(), translated_errors(LESS), telling(place, stage, job), shown:
        result = trainer.fit()
    shutil.rmtree(storage, ignore_errors=True)
    Path(job.note).unlink(missing_ok=True)
    answer = result.return_value
    if answer is None:
        raise RunError(f"the workers of stage {stage} ended without an answer")
    if isinstance(answer, InputError):
        raise answer
    return answer


def _trains(metrics: Path, since: float) -> bool:
    """Whether workers write steps; they look for a note to stop behind each."""
    return metrics.exists() and metrics.stat().st_mtime >= since


class _Trainer(DataParallelTrainer):
    """Ray's trainer without two helper processes that have nothing to do, and take seconds to start.

    Ray has no setting for them. Should it rename them, they are started again.
    """

    def __init__(self, *args: Any, local: bool, **settings: Any):
        """`local`: whether Ray ends with this program."""
        super().__init__(*args, **settings)
        self._idle = IDLE | IDLE_LOCALLY if local else IDLE

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the program: Ray would end the workers without a checkpoint, and all with status 0."""

    def _create_default_callbacks(self) -> list[Any]:
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in self._idle]


def _worker(config: dict[str, Any]) -> Done | Scored | InputError:
    """One rank. An error of the user's is an answer, not a failure: Ray would try again what can never work."""
    end_quickly()
    job: Job = config["job"]
    work: Feed | Unscored = config["work"]
    steps = Steps(work) if isinstance(work, Feed) else None

    from ray.train.torch import get_device  # torch and deepspeed take seconds, in which Ray Data's process starts

    from pipeline.worker.device import settle

    given: Any = get_device()
    device = settle(given, job.deterministic)

    from pipeline.models.cards import local_card
    from pipeline.models.group_scorer import score_share
    from pipeline.worker.loop import train  # both with deepspeed

    try:
        if isinstance(work, Unscored):
            return score_share(job, work, device)
        assert steps is not None
        card = local_card(device.index) if device.type == "cuda" else None
        peak = None if card is None else card.tflops(job.dtype == "float32") * 1e12
        return train(job, device, steps.epoch, steps.held_out, _preempted, peak)
    except InputError as error:
        return error


def _preempted() -> bool:
    """Whether Ray was told that a worker's node will be taken away; called by all workers, since they agree on it."""
    return ray.train.get_preemption_info() is not None
