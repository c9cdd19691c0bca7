"""Connect to Ray, or start one here; check what was asked for; run stages on Ray Data."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from pipeline.config import Config
from pipeline.errors import InputError, RunError
from pipeline.stages.capacity import nodes_of_cluster, refuse_impossible, requests

if TYPE_CHECKING:
    from pipeline.place import Place  # with torch and models, which not every process of the cluster needs

OBJECT_STORE_BYTES = 512 * 2**20  # of a local Ray: stages hand small tables around, and keep data in files


def joined(config: Config) -> str | None:
    """The address of the cluster that the run joins; None: it starts a local Ray of its own."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def connect(place: Place) -> None:
    """Join the configured cluster, the job's own, or start a local Ray with as many logical CPUs as the run needs.

    Raises:
        InputError: the cluster can never satisfy the request.
    """
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
        "runtime_env": {"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}},
    }
    place.terminal.live("ray", "starting")
    if quiet:
        _aside.begin(place.run_dir / "ray.log")
    if address is not None:
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"cluster.address = {address!r}: no Ray cluster answers there: {reason}") from None
    else:
        _start_local(_cpus_needed(config), options)
    refuse_impossible(requests(config), nodes_of_cluster(), config.reference.mode == "overlap")
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if quiet:
        _silence()


def _start_local(cpus: int, options: dict[str, Any]) -> None:
    store = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address="local", num_cpus=cpus, **store, **options)
    except Exception as error:
        if type(error) is not Exception:  # the bare class is what Ray raises when its processes do not come up
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"Ray did not start here: {reason} If the machine is busy, try again.") from error


def disconnect() -> None:
    """Leave the cluster; a local Ray ends."""
    if ray.is_initialized():
        ray.shutdown()
    _aside.end()


class _Aside:
    """Ray's C++ side writes to this process's stderr, past every Python setting; meanwhile that goes to a file."""

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
    score = config.reference.actors * config.reference.cpus_per_actor + 1
    return train + score if config.reference.mode == "overlap" else max(train, score, 2)


def refuse_missing_gpus(config: Config, there: int) -> None:
    """Raise an InputError where more GPUs are asked for than this machine has."""
    asked = {
        "cluster.gpus_per_worker": config.cluster.least_workers * config.cluster.gpus_per_worker,
        "reference.gpus_per_actor": config.reference.actors * config.reference.gpus_per_actor,
    }
    for key, needed in asked.items():
        if needed > there:
            raise InputError(
                f"{key} asks for {needed} GPU(s) in all and this machine has {there}. Set {key} = 0 to use CPUs."
            )


def _silence() -> None:
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def over(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """A Ray Data set of one block an item, so that each is a task of its own."""
    return ray.data.from_items(items, override_num_blocks=max(1, len(items)))


def each_item(items: list[dict[str, Any]], work: Callable[..., Iterator[pa.Table]], **options: Any) -> Iterator[Any]:
    """Run `work(item, **options)` as a Ray Data task for every item; yields the rows of the tables it yields."""
    if not items:
        return
    dataset = over(items).map_batches(
        _on_items,  # type: ignore[arg-type] - a generator is as good as a function, its stub does not say so
        fn_kwargs={"work": work, "options": options},
        batch_size=1,
        batch_format="pyarrow",
    )
    with translated_errors():
        yield from dataset.iter_rows()


def _on_items(table: pa.Table, work: Callable[..., Iterator[pa.Table]], options: dict[str, Any]) -> Iterator[pa.Table]:
    for item in table.to_pylist():
        yield from work(item, **options)


class translated_errors:
    """Turn what Ray wraps around an error of ours back into that error, and anything else into a RunError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        ours = isinstance(error, InputError | KeyboardInterrupt | SystemExit | GeneratorExit)
        if error is None or (ours and not isinstance(error, RayError)):
            return
        # Ray raises a class that is both its own and the original's; the original is the one without Ray in it.
        causes = [cause for cause in _causes(error) if not isinstance(cause, RayError) and str(cause)]
        for cause in causes:
            if isinstance(cause, InputError):
                raise InputError(_said(cause)) from None
        if not causes:  # a process that died; Ray tells the reason at the end of what it says
            raise RunError((str(error).strip().splitlines() or [type(error).__name__])[-1]) from error
        first = causes[-1]  # what Ray Train raises holds what its workers raised
        name = "" if isinstance(first, RunError) else f"{type(first).__name__}: "
        raise RunError(name + _said(first)) from error


def _said(error: BaseException) -> str:
    """What an error said before Ray Data put its advice behind it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.partition("\nFailed to apply UDF transform")[0].strip()


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Let Ctrl-C mean the same in training as elsewhere.

    Ray Train puts its own handler in place, which ends the program with status 0 or 1, and leaves it there.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what lies below it; Ray keeps causes in different places."""
    seen: list[BaseException] = []
    todo: list[Any] = [error]
    while todo:
        here = todo.pop(0)
        if isinstance(here, BaseException) and here not in seen:
            seen.append(here)
            yield here
            todo += [getattr(here, "cause", None), here.__cause__, getattr(here, "_base_exc", None)]
            todo += list(getattr(here, "worker_failures", {}).values())
