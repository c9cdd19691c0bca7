"""Join a Ray cluster, or start a local Ray; leave it again. Ray is imported by whoever connects."""

from __future__ import annotations

import logging
import os
import site
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
TASK_RETRIES = "3"  # of a task that was ended for lack of memory; Ray would try for ever
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

    config = place.config
    quiet = not config.report.ray_logs
    if ray.is_initialized():
        if quiet and place.keeps_ray:
            _aside.begin(place.run_dir / run_files.RAY_LOG)  # it was begun for another run, which has a log of its own
        return
    address = joined(config)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0" if address is None else "1")
    options: dict[str, Any] = {
        "job_config": _where_the_packages_are(),
        "log_to_driver": not quiet,
        "logging_level": logging.ERROR if quiet else logging.INFO,
    }
    if address is None:
        os.environ.update(WORKERS_ENVIRONMENT)  # which the processes of a Ray of our own inherit
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", LOCAL_POLL_SECONDS)
        os.environ.setdefault("RAY_task_oom_retries", TASK_RETRIES)
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")  # there is no dashboard to show them
    else:
        options["runtime_env"] = {"env_vars": WORKERS_ENVIRONMENT}
    place.terminal.live("ray", "starting")
    if quiet:
        _aside.begin(place.run_dir / run_files.RAY_LOG)
    with own_sigterm(), _apart(place.run_dir):
        if address is not None:
            join(address, options, place.run_dir / run_files.RAY_LOG)
        else:
            _start_local(_cpus_needed(config), options)
    _judge(place, alone=address is None)
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if quiet:
        _silence()


@contextmanager
def _apart(folder: Path) -> Iterator[None]:
    """Be in a folder of ours while Ray starts: it lets workers import from the driver's folder before all else.

    A dpo.py of the user's there would be taken for ours.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _where_the_packages_are() -> Any:
    """Let workers find these packages where they are not installed, but run from a checkout that all nodes see."""
    from ray.job_config import JobConfig

    root = str(Path(__file__).resolve().parents[2])
    installed = {str(Path(path).resolve()) for path in (*site.getsitepackages(), site.getusersitepackages())}
    return JobConfig(_py_driver_sys_path=[] if root in installed else [root])


def _judge(place: Place, alone: bool) -> None:
    """Refuse what the cluster can never hold, and let Ray Train wait as long as this cluster's nodes take to start."""
    from pipeline.cluster.capacity import Growth, judge, nodes_there

    if alone:
        judge(place.config, nodes_there(), None, place.until)
        return
    from pipeline.cluster.autoscaler import growth, start_seconds

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_seconds(place.config))
    # Whoever says how long to wait expects nodes, also where no autoscaler adds them.
    awaited = Growth(None) if place.config.cluster.start_minutes is not None else None
    unknown = judge(place.config, nodes_there(), growth() or awaited, place.until)
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


def logs_folder() -> str | None:
    """The folder of Ray's logs on this machine; None where Ray does not run."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    node = ray._private.worker._global_node
    return None if node is None else node.get_logs_dir_path()


def connect_for(place: Place, others: list[Place]) -> None:
    """Connect for a run, and for those that come after it: a local Ray gets the CPUs that any of them needs.

    Raises:
        InputError: the cluster can never satisfy the request of the run.
    """
    largest = max((place, *others), key=lambda each: _cpus_needed(each.config))
    connect(replace(place, config=largest.config))


def refuse_too_large(place: Place) -> None:
    """Raise an InputError where the cluster that this process is connected to can never hold a run."""
    _judge(place, alone=joined(place.config) is None)


@contextmanager
def leaving(keeps: bool = False) -> Iterator[None]:
    """Leave the cluster behind the body.

    Args:
        keeps: stay, since other runs go on with it; left all the same where the body fails, so that its workers end.
    """
    stays = False
    try:
        yield
        stays = keeps
    finally:
        if not stays:
            disconnect()


def leave(place: Place) -> None:
    """Leave the cluster, unless other runs go on with it."""
    if not place.keeps_ray:
        disconnect()


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
        self.kept = os.dup(2) if self.kept is None else self.kept
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


def refuse_missing_gpus(config: Config, until: str = "export") -> None:
    """Raise an InputError where the stages up to `until` ask for more GPUs than this machine has."""
    said = missing_gpus(config, until)
    if said is not None:
        raise InputError(said)


def missing_gpus(config: Config, until: str = "export") -> str | None:
    """Say which GPUs this machine lacks for the stages up to `until`; None where it has what they ask for."""
    scores, trains = config.asks(until)
    asked: dict[str, int] = {}
    if trains:
        asked["cluster.gpus_per_worker"] = config.cluster.least_workers * config.cluster.gpus_per_worker
    if scores:
        asked["reference.gpus_per_actor"] = config.reference.actors * config.reference.gpus_per_actor
    if not any(asked.values()):
        return None
    import torch  # the driver needs it for nothing else

    there = torch.cuda.device_count()
    for key, needed in asked.items():
        if needed > there:
            return f"{key} asks for {needed} GPU(s) in all and this machine has {there}. Set {key} = 0 to use CPUs."
    return None


def _silence() -> None:
    import ray._private.worker
    import ray.data

    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    ray._private.worker.print_to_stdstream = _to_log  # what Ray says of lost processes, past every setting


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Write to stderr, which is in the run's ray.log meanwhile."""
    print(*data["lines"], sep="\n", file=sys.stderr)
