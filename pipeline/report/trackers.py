"""metrics.jsonl -> experiment trackers, by their own clients. What they need to know comes from their own variables."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ConfigError, first_line

PROJECT = "ray-align"  # where the client's own variable names none


class Tracker(Protocol):
    """One run of a tracker, which a later program may continue."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def finish(self, files: list[Path], summary: dict[str, Any], failed: bool) -> None: ...


class Wandb:
    """Weights & Biases. WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, WANDB_DIR."""

    def __init__(self, identity: str, name: str, config: dict[str, Any], folder: Path):
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(
            id=identity,
            name=name,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def finish(self, files: list[Path], summary: dict[str, Any], failed: bool) -> None:
        self.run.summary.update(summary)
        for path in files:
            self.run.save(str(path), base_path=str(path.parent), policy="now")
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """MLflow. MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, and what its store asks for."""

    def __init__(self, identity: str, name: str, config: dict[str, Any], folder: Path):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self.metric = Metric
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}"))
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        where = found.experiment_id if found is not None else self.client.create_experiment(experiment)
        mine = self.client.search_runs([where], f"tags.`ray-align` = '{identity}'", max_results=1)
        if mine:
            self.run = mine[0].info.run_id
            return
        self.run = self.client.create_run(where, tags={"ray-align": identity}, run_name=name).info.run_id
        self.client.log_batch(self.run, params=[Param(key, str(value)[:500]) for key, value in config.items()])

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run, [self.metric(key, value, now, step) for key, value in metrics.items()])

    def finish(self, files: list[Path], summary: dict[str, Any], failed: bool) -> None:
        for path in files:
            self.client.log_artifact(self.run, str(path))
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class Trackio:
    """Trackio, on this machine or in a Space. TRACKIO_DIR, TRACKIO_PROJECT, TRACKIO_SPACE_ID, HF_TOKEN."""

    def __init__(self, identity: str, name: str, config: dict[str, Any], folder: Path):
        import trackio  # pyright: ignore[reportMissingImports]

        self.client = trackio
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{name}-{identity}",
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def finish(self, files: list[Path], summary: dict[str, Any], failed: bool) -> None:
        for path in files:
            self.client.save(str(path))
        self.run.finish()


TRACKERS: dict[str, Callable[[str, str, dict[str, Any], Path], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def refuse_missing(names: Sequence[str]) -> None:
    """Raise a ConfigError where the client of a tracker is not installed."""
    for name in names:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'report.trackers names {name!r}, which is not installed: pip install "ray-align[{name}]", or take it '
                "out of the list"
            )


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The settings by section.field; lists and free tables stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{key}.") if not above and isinstance(value, dict) else {f"{above}{key}": value}
    return found


def new_identity() -> str:
    return uuid.uuid4().hex[:12]


class Guarded:
    """A tracker that never stops a run: its first failure is said, and then it is left alone."""

    def __init__(self, name: str, note: Callable[[str], None]):
        self.name, self.note = name, note
        self.tracker: Tracker | None = None

    def do(self, act: Callable[[], Any]) -> Any:
        """Do something with the tracker's client, which raises classes of its own; None where that failed."""
        try:
            return act()
        except Exception as error:
            self.tracker = None
            self.note(f"{self.name}: {first_line(error)[:300]}; the run goes on without it, and metrics.jsonl has all")
            return None


def ends_within(seconds: float, thread: threading.Thread) -> bool:
    """Wait for a thread; a client that waits for a network is left behind."""
    thread.join(seconds)
    return not thread.is_alive()
