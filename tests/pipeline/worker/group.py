"""Real process groups without Ray: gloo ranks on this machine that run one call after another."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import torch.distributed as dist

from pipeline.errors import InputError, RunError
from pipeline.worker import rank
from pipeline.worker.loop import Done, Job, train

PRELOAD = ["pipeline.worker.loop", "deepspeed", "transformers.models.llama.modeling_llama"]
LIMIT_SECONDS = 240  # of a call; a collective that one rank does not join would wait for ever


class Stopped(RuntimeError):
    """What a killed job looks like from inside."""


class Task(NamedTuple):
    job: Job
    epochs: list[list[pa.Table]]  # the tables of each epoch's steps
    held_out: list[pa.Table]
    stop_at: int | None = None  # the step, counted from 0 over all epochs, whose rows never arrive
    announced_at: int | None = None  # the step before which it is announced that a node will go
    peak: float | None = None  # FLOP/s of each rank's card


class Group:
    """A process group whose ranks wait for calls; the group is initialised once."""

    def __init__(self, world_size: int, folder: Path, collective_seconds: float = 60):
        """Start the ranks, which meet at a file in `folder`."""
        folder.mkdir(parents=True)
        # Every group is forked off one server that has imported the libraries once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.pipes: list[Connection] = []
        self.processes = []
        for number in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (number, world_size, folder / "rendezvous", collective_seconds, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that the end of the rank is the end of the pipe
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float = LIMIT_SECONDS) -> list[Any]:
        """What the function returns on every rank.

        Raises:
            AssertionError: a rank ended, or did not answer in time. The group cannot be used any more.
        """
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + seconds
        while missing := [pipe for number, pipe in enumerate(self.pipes) if number not in answers]:
            ready = wait(missing, max(0.0, deadline - time.monotonic()))
            assert ready, f"{len(missing)} of {len(self.pipes)} ranks did not answer within {seconds} s"
            for pipe in ready:
                number = self.pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    answers[number] = self.pipes[number].recv()
                except EOFError:
                    self.processes[number].join()
                    code = self.processes[number].exitcode
                    raise AssertionError(f"rank {number} ended with status {code}; stderr has its traceback") from None
        return [answers[number] for number in range(len(self.pipes))]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join()
            pipe.close()


class Groups:
    """One group for each world size, kept from call to call; a group whose call failed is replaced."""

    def __init__(self, folder: Path, collective_seconds: float = 60):
        """`collective_seconds`: limit of a collective."""
        self.folder = folder
        self.collective_seconds = collective_seconds
        self.started = 0
        self.open: dict[int, Group] = {}

    def call(
        self, world_size: int, function: Callable[..., Any], *arguments: Any, seconds: float = LIMIT_SECONDS
    ) -> list[Any]:
        """What the function returns on every rank of a group that may have run other calls before."""
        # The group is put back only after an answer: after an error nobody can say where its ranks stand.
        group = self.open.pop(world_size, None) or self._start(world_size)
        try:
            answers = group.call(function, *arguments, seconds=seconds)
        except BaseException:
            group.close()
            raise
        self.open[world_size] = group
        return answers

    def run(self, world_size: int, tasks: list[Task]) -> list[list[Done | str]]:
        """Run training jobs: [task][rank] -> what `train` returned, or the message of its error."""
        return [list(of_task) for of_task in zip(*self.call(world_size, run_tasks, tasks), strict=True)]

    def run_afresh(self, world_size: int, tasks: list[Task]) -> list[list[Done | str]]:
        """Run training jobs on ranks that have run nothing before."""
        if world_size in self.open:
            self.open.pop(world_size).close()
        return self.run(world_size, tasks)

    def close(self) -> None:
        for group in self.open.values():
            group.close()
        self.open.clear()

    def _start(self, world_size: int) -> Group:
        self.started += 1
        return Group(world_size, self.folder / str(self.started), self.collective_seconds)


def run_tasks(tasks: list[Task]) -> list[Done | str]:
    """Run on one rank: the jobs, one after the other."""
    return [_answer(task) for task in tasks]


def _serve(number: int, world_size: int, rendezvous: Path, collective_seconds: float, calls: Connection) -> None:
    """Be one rank, for as long as the pipe is open."""
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=collective_seconds), world_size, number)
    while True:
        try:
            function, arguments = calls.recv()
        except EOFError:
            return
        calls.send(function(*arguments))


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
    rank.BRIEF_SECONDS = LIMIT_SECONDS  # a checkpoint is committed before the next step, on however slow a disk
    try:
        held_out = partial(iter, task.held_out)
        return train(task.job, torch.device("cpu"), batches, held_out, lambda: announced, task.peak)
    except Stopped:
        return "stopped"
    except (InputError, RunError) as error:
        return str(error)
