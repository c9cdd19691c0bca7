"""The whole line in one process without Ray, on data so small that a run takes seconds.

Tasks, actors and workers become calls. What reads or writes files, the training loop and DeepSpeed are the real ones.
`Lab` runs it in a process of its own, so that a test's process stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.cluster import connect as connect_module
from pipeline.cluster import items as items_module
from pipeline.cluster.items import here
from pipeline.config import Config
from pipeline.errors import InputError, RunError
from pipeline.place import Place
from pipeline.run import run
from pipeline.stages import evaluate, export, merged, overlap, score, sft, train
from pipeline.worker import rank
from pipeline.worker.feed import Feed
from pipeline.worker.job import Done, Job
from tests.pipeline.worker.group import Group

TINY = """
[run]
name = "base"
audit = true
[data]
train = "train.jsonl"
eval = "eval.jsonl"
max_length = 64
[policy]
kind = "x-transformers"
dim = 32
depth = 2
heads = 2
[train]
batch_pairs = 8
learning_rate = 1e-3
checkpoint_steps = 2
[report]
tensorboard = false
"""
SFT = ("sft.epochs=1", "sft.batch_pairs=16", "sft.learning_rate=1e-3")


def row(i: int) -> dict[str, str]:
    return {
        "prompt": f"Question {i}: what is {i}+{i % 7}?",
        "chosen": f" {i + i % 7}",
        "rejected": f" about {i * 2 + 1}",
    }


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def made(folder: Path, rows: int = 48, files: int = 1) -> Path:
    """A folder with a configuration and its data; the training pairs dealt out to so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TINY
    if files > 1:
        text = text.replace('"train.jsonl"', '"many"')
        (folder / "many").mkdir()
        for number in range(files):
            write_rows(folder / "many" / f"{number}.jsonl", [row(i) for i in range(number, rows, files)])
    else:
        write_rows(folder / "train.jsonl", [row(i) for i in range(rows)])
    write_rows(folder / "eval.jsonl", [row(i) for i in range(1000, 1012)])
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return folder


def config(folder: Path, *overrides: str) -> Config:
    return Config.load(str(folder / "tiny.toml"), list(overrides))


def copied(folder: Path, target: Path) -> Path:
    """A copy that goes on as the original would: settings that name the folder are forgotten."""
    shutil.copytree(folder, target, symlinks=True)
    for path in target.glob("runs/*/config.json"):
        path.unlink()
    return target


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit and leave size and times as they were, as a disk does."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ (1 << bit)]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def losses(folder: Path, name: str = "base") -> list[float]:
    """The loss of each step, and of each evaluation."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["loss"] for row in rows if "loss" in row] + [row["eval/loss"] for row in rows if "eval/loss" in row]


class Stopped(BaseException):
    """A run that is killed."""


class Lab:
    """A process that runs the line."""

    def __init__(self, folder: Path):
        """`folder` does not exist yet."""
        self.folder = folder
        self._process: Group | None = None
        self._started = 0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module there; the answer is what it returns, or the message of its error."""
        if self._process is None:
            self._started += 1
            self._process = Group(1, self.folder / str(self._started))
        return self._process.call(_answer, function, arguments)[0]

    def line(self, folder: Path, *overrides: str, until: str = "export", stop_at: int | None = None) -> Any:
        """Run the line; the answer is its summary, or the message of its error, or "stopped".

        Args:
            stop_at: the step, counted from 0 over all epochs, whose rows never arrive.
        """
        return self.call(run_line, folder, overrides, until, stop_at)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except Stopped:
        return "stopped"
    except (InputError, RunError) as error:
        return f"{type(error).__name__}: {error}"


def run_line(folder: Path, overrides: tuple[str, ...], until: str, stop_at: int | None) -> dict[str, Any]:
    """Run the line in this process, which takes part in a process group of its own."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
    without_ray(stop_at)
    return run(config(folder, *overrides), until)


def place_of(folder: Path, *overrides: str) -> Place:
    return Place.of(config(folder, *overrides))


def without_ray(stop_at: int | None = None) -> None:
    """Make calls of tasks, actors, workers and helper processes, for as long as this process lives."""
    import pipeline.data.tokenizer
    import pipeline.models.adapted
    import pipeline.models.start
    import pipeline.process

    connect_module.connect = overlap.connect = lambda place: None
    connect_module.connect_for = lambda place, others: None
    connect_module.refuse_too_large = lambda place: None
    items_module.on_ray = lambda place: here
    evaluate.import_ahead = lambda place, *modules: None
    score.on_pool = evaluate.on_pool = on_pool_here
    sft.run_group = train.run_group = _group_here(stop_at)
    for module in (
        pipeline.process,
        pipeline.data.tokenizer,
        pipeline.models.start,
        pipeline.models.adapted,
        export,
        merged,
    ):
        module.Process = Call  # type: ignore[misc,assignment]


class Call:
    """What `Process` does, at once and in this process."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self._found = function(*args)

    def result(self) -> Any:
        return self._found

    def end(self) -> None:
        """There is nothing to end."""


def on_pool_here(
    place: Any, items: Any, asked: Any, options: Any, reading: Any = None, in_order: bool = False
) -> Iterator[dict[str, Any]]:
    """Ask a frozen model in this process."""
    model = asked(**options) if items else None
    for item in items:
        table = pa.Table.from_pylist([item])
        for found in [table] if reading is None else reading.read(table):
            for at in range(0, found.num_rows, reading.rows if reading is not None else 1):
                yield from model(found.slice(at, reading.rows if reading is not None else 1)).to_pylist()


def _group_here(stop_at: int | None) -> Callable[..., Done]:
    def run_group(place: Any, stage: str, job: Job, feed: Feed) -> Done:
        """Train on one worker, this process."""
        rank.BRIEF_SECONDS = 60.0  # a checkpoint is committed before the next step, on however slow a disk

        def batches(epoch: int, first: int) -> Iterator[pa.Table]:
            for step, table in enumerate(steps_of(feed.epochs[epoch])):
                if stage == "train" and stop_at == epoch * job.steps_per_epoch + step and step >= first:
                    raise Stopped
                if step >= first:
                    yield table

        from pipeline.worker.loop import train as train_here

        return train_here(job, torch.device("cpu"), batches, lambda: steps_of(feed.held_out))

    return run_group


def steps_of(paths: list[str]) -> Iterator[pa.Table]:
    for path in paths:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)
