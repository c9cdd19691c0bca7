"""Training jobs of the pipeline's own workers on random pairs, without Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from dpo.terms import Term
from dpo.text.pairs import TokenizedPair
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import peak
from examples.benchmarks.workload import Pair
from pipeline.config import DeepSpeed, Train
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.errors import RunError
from pipeline.process import Process
from pipeline.store import run_files
from pipeline.store.tokens import ORDERED, token_row
from pipeline.worker.device import settle
from pipeline.worker.job import Job

ADAMW = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}  # the schedule sets every step's rate


class Enough(Exception):
    """The steps that were to be measured are done, and nothing is to be saved."""


def make_job(
    folder: Path, model: Path, steps: list[list[Pair]], stage: Literal[1, 2], budget: int, more: int = 0, **changes: Any
) -> Job:
    """A job below `folder`.

    Args:
        budget: tokens of a micro-batch.
        more: steps that the job has beyond those given. It never gets their rows, so it never saves.
    """
    for name in ("weights", "logs", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lengths = [(len(p.prompt), len(p.chosen), len(p.rejected)) for pairs in steps for p in pairs]
    starts = np.cumsum([0, *map(len, steps[:-1])])
    np.savez(folder / "steps.npz", lengths=np.array(lengths), steps=starts)
    settings = Train(dtype="bfloat16")
    fields: dict[str, Any] = {
        "mixture": (Term("sigmoid", {"beta": 0.1}),),
        "imitated": (),
        "pad_id": 0,
        "may_share": True,
        "activation_checkpointing": False,
        "step_lengths": [str(folder / "steps.npz")],
        "model": str(model),
        "weights": str(folder / "weights"),
        "logs": str(folder / "logs"),
        "checkpoints": str(folder / "checkpoints"),
        "fingerprint": "benchmark",
        "deepspeed": deepspeed_settings(settings, DeepSpeed(stage=stage)),
        "adamw": ADAMW,
        "dtype": "bfloat16",
        "epochs": 1,
        "steps_per_epoch": len(steps) + more,
        "micro_batch_tokens": budget,
        "learning_rate": 1e-6,
        "schedule": "constant",
        "warmup_steps": 0,
        "guard_tolerance": None,  # the reference below is none
        "evaluate_every": None,
        "best_by": None,
        "checkpoint_minutes": 1e9,
        "checkpoint_steps": None,
        "keep_checkpoints": 1,
        "audit": False,
        "tensorboard": False,
        "threads": None,
    }
    return Job(**fields | changes)


def tables(steps: list[list[Pair]]) -> list[pa.Table]:
    """The rows of each step, with a reference whose log-probs are all -1."""
    made = []
    for number, pairs in enumerate(steps):
        rows = []
        for place, pair in enumerate(pairs):
            masks = [True] * len(pair.chosen), [True] * len(pair.rejected)
            ids = TokenizedPair(pair.prompt, pair.chosen, pair.rejected, *masks, False, 0)
            chosen, rejected = (np.full(len(mask), -1.0) for mask in masks)
            logps = {"chosen_logps": chosen, "rejected_logps": rejected}
            rows.append({**token_row(number << 16 | place, ids), **logps})
        made.append(pa.Table.from_pylist(rows, schema=ORDERED))
    return made


def run_job(
    setting: Setting, job: Job, steps: list[list[Pair]], at_step: Callable[[int], None] = lambda step: None
) -> list[dict[str, Any]]:
    """Train in this process, one of a group that it has joined; returns the rows of metrics.jsonl.

    Args:
        at_step: called with the number of each step, from 0 on, before its rows are handed over; also with the number
            of steps, where the job wants more.
    """
    from pipeline.worker.loop import train  # DeepSpeed, once the process has settled on its device

    made = tables(steps)

    def batches(epoch: int, first: int) -> Iterator[pa.Table]:
        for step in range(first, len(made)):
            at_step(step)
            yield made[step]
        at_step(len(made))
        raise Enough

    rate = None if setting.card is None else peak(setting.card)
    with suppress(Enough):
        train(job, setting.device, batches, lambda: iter(()), peak=rate)
    text = (Path(job.logs) / run_files.METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def join(setting: Setting, folder: Path, rank: int = 0, world: int = 1) -> Setting:
    """Join a process group of so many ranks that meet in `folder`; returns the setting on this rank's device."""
    device = torch.device("cuda", rank) if setting.on_gpu else setting.device
    if not dist.is_initialized():
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        settle(device, deterministic=False)
        folder.mkdir(parents=True, exist_ok=True)
        if world == 1:
            (folder / "rendezvous").unlink(missing_ok=True)  # of a group that is no more
        backend = "cpu:gloo,cuda:nccl" if setting.on_gpu else "gloo"
        dist.init_process_group(backend, f"file://{folder}/rendezvous", world_size=world, rank=rank)
    return setting._replace(device=device)


def apart(setting: Setting, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with the setting, in a process of its own: it has the whole card, and its own peak of memory.

    Tiny models do without: they have no peak worth the start of a process.

    Raises:
        RunError: names the file with what the process said.
    """
    if setting.tiny:
        return function(setting, *arguments)
    log = setting.out / f"{'-'.join([function.__name__, *map(str, arguments)])}.log"
    try:
        return Process(_logged, log, function, setting, *arguments).result()
    except RunError as error:
        raise RunError(f"{function.__name__}{arguments} ended early; {log} says why") from error


def _logged(log: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while all that this process prints goes to a file."""
    with log.open("w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    return function(*arguments)
