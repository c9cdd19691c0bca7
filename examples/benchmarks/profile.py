"""Where the time of a training step goes: the last step of one or several systems of `compare`, by kind of operation.

    python -m examples.benchmarks.profile --data pairs.jsonl.gz --model FOLDER --max-length 512 --steps 1

It takes the options of `compare`, and makes the same steps. Each system runs by itself; its last step is recorded by
torch's profiler, which makes it a little slower. The shares count, not the seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from examples.benchmarks.compare import ADAPTED, LADDER, arguments, make_task
from examples.benchmarks.contestants import Ours, Task, Trl

HEAD, LAYERS, ATTENTION, VOCABULARY = "head, products", "layers, products", "attention", "over the vocabulary, others"
OPTIMIZER, OTHER = "optimizer and clipping", "others"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
UPDATES = ("adamw", "_foreach", "Optimizer", "linalg_vector_norm")


def main() -> None:
    options = arguments(__doc__)
    ladder = LADDER if options.adapter is None else ADAPTED
    names = options.only or list(ladder)
    with tempfile.TemporaryDirectory() as folder:
        task, _ = make_task(options, Path(folder))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # each in a process of its own
            found = {name: pool.apply(seconds_by_kind, (ladder[name], task)) for name in names}
    show(found)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{date[:10]}-profile-{options.label}.json"
    path.write_text(json.dumps({"date": date, "seconds": found}, indent=1) + "\n")
    print(path)


def seconds_by_kind(contestant: Ours | Trl, task: Task) -> dict[str, float]:
    """Make the steps of a task; return the seconds of the last one by kind, with nested operations counted once."""
    torch.set_num_threads(task.threads)
    steps = contestant.run(task)
    for _ in task.steps:  # the first one sets the system up
        next(steps)
    everywhere = _ExperimentalConfig(profile_all_threads=True)  # TRL trains in a thread of its own
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=everywhere) as recorded:
        next(steps)
    found: dict[str, float] = {}
    for event in recorded.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, event.input_shapes, task.vocabulary)
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def kind_of(operation: str, shapes: list[Any], vocabulary: int) -> str:
    """Return the kind of an operation, told by its name and by whether a matrix is as wide as a part of the vocabulary.

    TRL computes its head for 32,768 words at a time.
    """
    wide = any(size >= vocabulary // 4 for shape in shapes if len(shape) > 1 for size in shape)
    if any(word in operation for word in UPDATES):
        return OPTIMIZER
    if operation in PRODUCTS:
        return HEAD if wide else LAYERS
    if "attention" in operation:
        return ATTENTION
    return VOCABULARY if wide else OTHER


def show(found: dict[str, dict[str, float]]) -> None:
    """Print a table: a row per kind, a column per system."""
    table = Table(title="seconds of a step, and their share")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for kind in (LAYERS, HEAD, ATTENTION, VOCABULARY, OPTIMIZER, OTHER):
        cells = [f"{row.get(kind, 0.0):.2f}  {row.get(kind, 0.0) / sum(row.values()):4.0%}" for row in found.values()]
        table.add_row(kind, *cells)
    table.add_row("all", *(f"{sum(row.values()):.2f}      " for row in found.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
