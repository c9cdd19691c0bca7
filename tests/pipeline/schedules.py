"""Runs of the line, up to its epochs, that take turns at every operation on files; some are killed by SIGKILL.

Each is a real process on a real file system. A seeded draw says whose turn it is, and who dies at it. The models are
stand-ins whose weights and log-probs are digests of what they were made of: a wrong input is a wrong number.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dpo.lm.weight_files import weights_digest
from dpo.lm.weights import read_weights, write_weights
from pipeline import upkeep
from pipeline.errors import InputError, RunError
from pipeline.run import run
from pipeline.stages import score, sft
from pipeline.store import lease
from pipeline.store.artifacts import write_manifest
from pipeline.store.cache import Cache
from pipeline.worker.checkpoints import begin_attempt, name_of
from pipeline.worker.feed import Feed
from pipeline.worker.job import Done, Job
from tests.pipeline.lab import SFT, config, place_of, without_ray

OPERATIONS = {
    *("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"),
    *("os.listdir", "os.scandir", "os.utime", "os.truncate"),
}
TURN = "turn"
TOGETHER_SECONDS = 0.02  # waited for the others to come to their next operation as well
LIMIT_SECONDS = 120.0

Actor = tuple[Callable[..., Any], tuple[Any, ...]]


def play(seed: int, root: Path, actors: list[Actor], kill: float) -> list[str]:
    """Let actors take turns until all have ended; what became of each: "done", "killed", or the class of its error.

    Args:
        kill: the chance that an actor dies at one of its operations below `root`.
    """
    draw, said = random.Random(seed), ["killed"] * len(actors)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.schedules", "dpo.lm.x_transformers"])
    pipes, processes = [], []
    for actor in actors:
        ours, theirs = context.Pipe()
        process = context.Process(target=_act, args=(theirs, str(root), *actor), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    alive, waiting = set(range(len(actors))), set()
    while alive:
        running = [pipes[number] for number in alive - waiting]
        ready = wait(running, TOGETHER_SECONDS if waiting else LIMIT_SECONDS)
        assert ready or waiting, "no actor came to its next operation"
        for number in [pipes.index(pipe) for pipe in ready]:  # type: ignore[arg-type]
            try:
                word = pipes[number].recv()
            except EOFError:
                word = "killed"
            if word == TURN:
                waiting.add(number)
            else:
                said[number] = word
                alive.discard(number)
        if waiting and (waiting == alive or not ready):
            number = draw.choice(sorted(waiting))
            waiting.discard(number)
            if draw.random() < kill:
                os.kill(processes[number].pid or 0, signal.SIGKILL)
                processes[number].join()
                alive.discard(number)
            else:
                pipes[number].send(TURN)
    for process, pipe in zip(processes, pipes, strict=True):
        process.join(LIMIT_SECONDS)
        pipe.close()
    return said


def _act(turns: Connection, root: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    me = threading.get_ident()

    def before(event: str, details: tuple[Any, ...]) -> None:
        if event in OPERATIONS and threading.get_ident() == me and str(details[0]).startswith(root):
            turns.send(TURN)
            turns.recv()

    sys.addaudithook(before)
    try:
        function(*arguments)
        turns.send("done")
    except (InputError, RunError) as error:
        turns.send(f"{type(error).__name__}: {error}")
    except FileNotFoundError as error:
        turns.send(f"FileNotFoundError: {error.filename}")


def ordered(folder: Path, *overrides: str) -> None:
    """Run the line up to its epochs, with stand-ins for models."""
    _stand_in(folder)
    run(config(folder, *SFT, *overrides), "order")


def tidied(folder: Path) -> None:
    """Compact the cache."""
    _stand_in(folder)
    upkeep.gc(place_of(folder), None)


def _stand_in(folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = f"{folder}-xdg"  # apart from what takes turns
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    without_ray()
    lease.POLL_SECONDS = lease.SETTLE_SECONDS = 0.005
    score.on_pool, sft.run_group = _score, _train


def _train(place: Any, stage: str, job: Job, feed: Feed) -> Done:
    """Save a checkpoint, then weights drawn by a digest of all windows and of the start, under the start's names."""
    attempt = begin_attempt(Path(job.checkpoints), job.fingerprint)
    checkpoint = Path(job.checkpoints) / name_of(attempt, 1)
    checkpoint.mkdir()
    write_manifest(checkpoint, job.fingerprint, {"step": 1, "attempt": attempt, "world_size": 1}, {}, {})
    made_of = weights_digest(Path(job.model)) + digest_of([path for epoch in feed.epochs for path in epoch])
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(made_of.encode()).digest()[:4], "big"))
    drawn = ((name, torch.rand(tensor.shape, generator=draw)) for name, tensor in read_weights(Path(job.model)))
    write_weights(Path(job.weights), drawn)
    return Done(1, 1, None, 1.0, 0.5, 0, 0.0, None)


def _score(place: Any, items: Any, asked: Any, options: Any, reading: Any, in_order: bool) -> Iterator[dict[str, Any]]:
    """Log-probs that are a digest of the model and the sequence."""
    model = weights_digest(Path(options["folder"])).encode() if items else b""
    for item in items:
        for table in reading.read(pa.Table.from_pylist([item])):
            keys = table["key"].to_pylist()
            sums = [hashlib.sha256(model + key).digest() for key in keys]
            lengths = [sum(mask) for mask in table["mask"].to_pylist()]
            values = [
                np.resize(np.frombuffer(s, np.uint8), n).astype(np.float32) for s, n in zip(sums, lengths, strict=True)
            ]
            Cache(options["cache"]).write(keys, values)
            yield {"sequences": len(keys), "peak_bytes": 0, "unshared": ""}


def digest_of(paths: list[Any]) -> str:
    """A digest of the rows of Parquet files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(repr(pq.read_table(path).to_pylist()).encode())
    return digest.hexdigest()


def numbers(folder: Path, name: str) -> str:
    """A digest of all that a run would train on and evaluate with."""
    return digest_of(sorted((folder / "runs" / name / "epochs").glob("*/*.parquet")))
