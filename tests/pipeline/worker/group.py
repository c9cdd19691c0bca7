"""Real process groups without Ray: gloo ranks on this machine that run training jobs one after the other."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.errors import InputError, RunError
from pipeline.worker import rank
from pipeline.worker.loop import Done, Job, train

PRELOAD = ["pipeline.worker.loop", "deepspeed", "transformers.models.llama.modeling_llama"]
LIMIT_SECONDS = 240  # of a group; a collective that one rank does not join would wait for ever


class Stopped(RuntimeError):
    """What a killed job looks like from inside."""


class Task(NamedTuple):
    job: Job
    epochs: list[list[pa.Table]]  # the tables of each epoch's steps
    held_out: list[pa.Table]
    stop_at: int | None = None  # the step, counted from 0 over all epochs, whose rows never arrive
    announced_at: int | None = None  # the step before which it is announced that a node will go


def run(folder: Path, world_size: int, tasks: list[Task]) -> list[list[Done | str]]:
    """Run tasks on a fresh group: [task][rank] -> what `train` returned, or the message of its error."""
    folder.mkdir(parents=True)
    # Every group is forked off one server that has imported the libraries once.
    forkserver.set_forkserver_preload(PRELOAD)
    context = mp.start_processes(
        _rank, args=(world_size, folder, tasks), nprocs=world_size, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise AssertionError(f"{world_size} ranks did not end within {LIMIT_SECONDS} s")
    answers = [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world_size)]
    return [list(of_task) for of_task in zip(*answers, strict=True)]


def _rank(number: int, world_size: int, folder: Path, tasks: list[Task]) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world_size))
    where = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", where, timedelta(seconds=60), world_size, number)
    (folder / str(number)).write_bytes(pickle.dumps([_answer(task) for task in tasks]))
    dist.destroy_process_group()


def _answer(task: Task) -> Done | str:
    announced = False

    def batches(epoch: int, first: int) -> Iterator[pa.Table]:
        nonlocal announced
        for step in range(first, len(task.epochs[epoch])):
            over_all = epoch * task.job.steps_per_epoch + step
            if over_all == task.stop_at:
                raise Stopped
            announced = announced or over_all == task.announced_at
            yield task.epochs[epoch][step]

    rank.PREEMPTION_SECONDS = 0  # asked at every step
    try:
        return train(task.job, torch.device("cpu"), batches, lambda: iter(task.held_out), lambda: announced)
    except Stopped:
        return "stopped"
    except (InputError, RunError) as error:
        return str(error)
