"""Join a Ray cluster, or start a local Ray; leave it again. Ray is imported by whoever connects."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.join import join
from pipeline.cluster.signals import own_sigterm
from pipeline.errors import InputError, RunError, first_line
from pipeline.place import Place
from pipeline.store import run_files

if TYPE_CHECKING:
    from pipeline.config import Config  # which a process of the cluster does without

# Of every process of a run. A worker that changed its folder would not find relative paths.
WORKERS_ENVIRONMENT = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}
LOCAL_POLL_SECONDS = "0.2"  # between two looks of Ray Train at workers on this machine; its default is 2
OBJECT_STORE_BYTES = 512 * 2**20  # of a local Ray: stages hand small tables around, and keep data in files


def joined(config: Config) -> str | None:
    """The address of the cluster that the run joins; None: it starts a local Ray of its own."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def connect(place: Place) -> None:
    """Join the configured cluster, the job's own, or start a local Ray with as many logical CPUs as the run needs.

    Raises:
        InputError: the cluster can never satisfy the request.
    """
    import ray
    import ray.data

    if ray.is_initialized():
        return
    config = place.config
    quiet = not config.report.ray_logs
    address = joined(config)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0" if address is None else "1")
    options: dict[str, Any] = {
        "log_to_driver": not quiet,
        "logging_level": logging.ERROR if quiet else logging.INFO,
    }
    if address is None:
        os.environ.update(WORKERS_ENVIRONMENT)  # which the processes of a Ray of our own inherit
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", LOCAL_POLL_SECONDS)
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")  # there is no dashboard to show them
    else:
        options["runtime_env"] = {"env_vars": WORKERS_ENVIRONMENT}
    place.terminal.live("ray", "starting")
    if quiet:
        _aside.begin(place.run_dir / run_files.RAY_LOG)
    with own_sigterm():
        if address is not None:
            join(address, options)
        else:
            _start_local(_cpus_needed(config), options)
    _judge(place, alone=address is None)
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if quiet:
        _silence()


def _judge(place: Place, alone: bool) -> None:
    """Refuse what the cluster can never hold, and let Ray Train wait as long as this cluster's nodes take to start."""
    from pipeline.cluster.capacity import Growth, judge, nodes_there

    if alone:
        judge(place.config, nodes_there(), None)
        return
    from pipeline.cluster.autoscaler import growth, start_seconds

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_seconds(place.config))
    # Whoever says how long to wait expects nodes, also where no autoscaler adds them.
    awaited = Growth(None) if place.config.cluster.start_minutes is not None else None
    unknown = judge(place.config, nodes_there(), growth() or awaited)
    if unknown is not None:
        place.terminal.note(f"{'ray':<9} {unknown}")


def _start_local(cpus: int, options: dict[str, Any]) -> None:
    import ray

    store = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address="local", num_cpus=cpus, **store, **options)
    except Exception as error:
        if type(error) is not Exception:  # the bare class is what Ray raises when its processes do not come up
            raise
        raise RunError(
            f"Ray could not be started on this machine: {first_line(error)} If the machine is busy, try again."
        ) from error


def disconnect() -> None:
    """Leave the cluster; a local Ray ends."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
    _aside.end()


class _Aside:
    """Ray's C++ side writes to this process's stderr, past every Python setting. During a run it goes to a file."""

    kept: int | None = None

    def begin(self, path: Path) -> None:
        sys.stderr.flush()
        self.kept = os.dup(2)
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)

    def end(self) -> None:
        if self.kept is not None:
            sys.stderr.flush()
            os.dup2(self.kept, 2)
            os.close(self.kept)
            self.kept = None


_aside = _Aside()


def _cpus_needed(config: Config) -> int:
    """Workers or actors at one time, and for each worker one CPU that reads its data."""
    train = config.cluster.most_workers * (config.cluster.cpus_per_worker + 1)
    score = config.reference.actors * config.reference.cpus_per_actor + 1 if config.asks_pool else 0
    return train + score if config.reference.mode == "overlap" else max(train, score, 2)


def refuse_missing_gpus(config: Config) -> None:
    """Raise an InputError where more GPUs are asked for than this machine has."""
    asked = {"cluster.gpus_per_worker": config.cluster.least_workers * config.cluster.gpus_per_worker}
    if config.asks_pool:
        asked["reference.gpus_per_actor"] = config.reference.actors * config.reference.gpus_per_actor
    if not any(asked.values()):
        return
    import torch  # the driver needs it for nothing else

    there = torch.cuda.device_count()
    for key, needed in asked.items():
        if needed > there:
            raise InputError(
                f"{key} asks for {needed} GPU(s) in all and this machine has {there}. Set {key} = 0 to use CPUs."
            )


def _silence() -> None:
    import ray.data

    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
