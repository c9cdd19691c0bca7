"""A job -> trained weights: one Ray Train worker group, fed by Ray Data."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from pipeline.cluster.connect import connect
from pipeline.cluster.errors import own_interrupts, translated_errors
from pipeline.cluster.items import over
from pipeline.errors import InputError, RunError
from pipeline.place import Place
from pipeline.store import run_files
from pipeline.worker.feed import FAILED, Feed
from pipeline.worker.job import Done, Job

STARTUP_RETRIES = 3  # of a worker group that finds no room; without a limit Ray would try for ever
PREFETCH = 2  # steps read ahead


def run_group(place: Place, stage: str, job: Job, feed: Feed) -> Done:
    """Run a job on the configured workers until it is done.

    Raises:
        InputError: what a worker found to be the user's to mend.
        RunError: workers were lost more often than train.max_failures allows.
    """
    connect(place)
    cluster = place.config.cluster
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker, **cluster.resources}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    elastic = cluster.least_workers < cluster.most_workers
    storage = Path(job.logs) / "ray"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "feed": feed},
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
            logging_config=ray.train.LoggingConfig(log_level="INFO" if place.config.report.ray_logs else "ERROR"),
        ),
    )
    following = place.terminal.following(stage, Path(job.logs) / run_files.METRICS, job.steps)
    with own_interrupts(), translated_errors(), following:
        result = trainer.fit()
    shutil.rmtree(storage, ignore_errors=True)
    answer = result.return_value
    if answer is None:
        raise RunError(f"the workers of stage {stage} ended without an answer")
    if isinstance(answer, InputError):
        raise answer
    if job.may_share and answer.unshared is not None:
        place.terminal.note(f"{stage:<9} every sequence repeats its prompt: {answer.unshared}")
    return answer


def _worker(config: dict[str, Any]) -> Done | InputError:
    """One rank. An error of the user's is an answer, not a failure: Ray would try again what can never work."""
    from pipeline.worker.loop import train  # loads deepspeed: seconds, and a line on stdout

    job, feed = config["job"], config["feed"]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def batches(epoch: int, first: int) -> Iterator[pa.Table]:
        window, skipped = divmod(first, feed.steps_per_window)
        steps = _steps(feed, feed.epochs[epoch][window:])
        for _ in range(skipped):
            next(steps)
        return steps

    device = get_device()
    assert isinstance(device, torch.device), "a worker has at most one GPU"
    try:
        return train(job, device, batches, lambda: _steps(feed, feed.held_out), _preempted)
    except InputError as error:
        return error


def _preempted() -> bool:
    """Whether Ray was told that a worker's node will be taken away; called by all workers, since they agree on it."""
    return ray.train.get_preemption_info() is not None


def _steps(feed: Feed, paths: list[str]) -> Iterator[pa.Table]:
    """The rows of windows as one table a step."""
    if not feed.appearing:
        return _stream(paths, feed.batch_pairs)
    # One at a time: a task that waits for its window would hold a CPU that scoring may need.
    return (step for path in paths if _wait_for(Path(path)) for step in _stream([path], feed.batch_pairs))


def _wait_for(path: Path) -> bool:
    """Return once the window is there.

    Raises:
        RunError: whoever writes the windows has failed.
    """
    failed = path.parents[1] / FAILED
    while not path.exists():
        if failed.exists():
            raise RunError(f"no further window to train on: {failed.read_text(encoding='utf-8')}")
        time.sleep(0.2)
    return True


def _stream(paths: list[str], batch_pairs: int) -> Iterator[pa.Table]:
    """The same, by Ray Data and in order."""
    if not paths:
        return iter(())
    dataset = over([{"path": path} for path in paths]).map_batches(_read_window, batch_size=1, batch_format="pyarrow")
    return iter(dataset.iter_batches(batch_size=batch_pairs, batch_format="pyarrow", prefetch_batches=PREFETCH))


def _read_window(table: pa.Table) -> Iterator[pa.Table]:
    for path in table["path"].to_pylist():
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)
