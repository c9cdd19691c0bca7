"""Part 6: the memory of a step against its estimate, and what the rehearsal promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from examples.benchmarks.gpu.jobs import apart, join, make_job, run_job
from examples.benchmarks.gpu.lengths import mean
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.workload import Pair
from pipeline.errors import InputError
from pipeline.models.room import FULL
from pipeline.models.sizing import GPU_PROGRAM, MicroBatch, Zero, estimate
from pipeline.store.memory import peak_bytes
from pipeline.worker.plan import plan_step

SHARES = (0.25, 1.0, 1.5)  # of the largest micro-batch that should fit
STEPS = 2  # the first makes Adam's moments, the second finds them there
CLOSE = 0.05  # of the estimate
ASSUMED = 80e9  # bytes, of a card that is not in the table


def measure(setting: Setting) -> Report:
    """Run the first model at three budgets, with activation checkpointing and without."""
    name = next(iter(setting.models))
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for checkpointing in (False, True):
        for share in SHARES[: 1 if setting.tiny or setting.brief else None]:
            budget = 64 if setting.tiny else int(share * largest_budget(setting, name, checkpointing))
            what = f"{name}: {budget:,} tokens, checkpointing {'on' if checkpointing else 'off'}"
            found = apart(setting, try_budget, name, budget, checkpointing)
            details[what] = found
            rows += _rows(setting, what, found)
    broken = [what for what, found in details.items() if found["ended"] == "in a step"]
    look = f"pipeline/worker/engine.py::Engine.room_for_update: the rehearsal held too little in {broken}"
    rows.append(Row("runs that passed the rehearsal and died", len(broken), "", 0, True, look))
    return Report(rows, details)


def largest_budget(setting: Setting, name: str, checkpointing: bool) -> int:
    """The largest budget whose estimate leaves a card the room that it needs."""
    memory = FULL * (ASSUMED if setting.card is None else setting.card.memory)
    pairs, budget = setting.pairs(name, 1000), 1024
    while _estimate(setting, name, budget, pairs, checkpointing) <= memory:
        budget += 1024
    return budget - 1024


def _estimate(setting: Setting, name: str, tokens: float, pairs: list[Pair], checkpointing: bool) -> float:
    """Bytes of a job whose micro-batches have so many tokens of such pairs."""
    lengths = np.array([(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs])
    batch = MicroBatch.of(tokens, *lengths.T)
    return estimate(setting.shape(name), Zero(1, 1), batch, checkpointing, setting.on_gpu).total


def try_budget(setting: Setting, name: str, budget: int, checkpointing: bool) -> dict[str, Any]:
    """Run in a process of its own: a few steps of two micro-batches that fill the budget."""
    folder = setting.work / f"memory-{budget}-{checkpointing}"
    setting = join(setting, folder)
    step = _filled(setting, name, budget)
    steps = [step] * STEPS
    changes = {"activation_checkpointing": checkpointing}
    job = make_job(folder, setting.folder(name), steps, 1, budget, more=1, **changes)
    begun: list[int] = []
    ended = "as it should"
    try:
        run_job(setting, job, steps, begun.append)
    except InputError:  # memory ran out
        ended = "in a step" if begun else "in the rehearsal"
    planned = plan_step([_tokens([pair]) for pair in step], 1, budget)[0]
    largest = max(([step[i] for i in indices] for indices in planned), key=_tokens)
    peak = torch.cuda.max_memory_allocated() if setting.on_gpu else peak_bytes()
    expected = _estimate(setting, name, _tokens(largest), largest, checkpointing)
    return {"ended": ended, "peak": peak, "estimate": expected - GPU_PROGRAM * setting.on_gpu}


def _filled(setting: Setting, name: str, budget: int) -> list[Pair]:
    """A step that two micro-batches hold, nearly full."""
    prompt, completion = map(mean, setting.quantiles)
    waiting = iter(setting.pairs(name, int(3 * budget / (prompt + 2 * completion)) + 20, seed=4))
    step: list[Pair] = []
    while _tokens(step) < 1.9 * budget:
        step.append(next(waiting))
    return step


def _tokens(pairs: list[Pair]) -> int:
    return sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)


def _rows(setting: Setting, what: str, found: dict[str, Any]) -> list[Row]:
    """The peak over the estimate. A run that did not fit has no peak of its own."""
    fits = found["ended"] == "as it should" and setting.on_gpu
    ratio = found["peak"] / found["estimate"] if fits else None
    look = "pipeline/models/sizing.py, with a snapshot of torch.cuda.memory"
    return [
        Row(f"{what}: ended {found['ended']}, peak", found["peak"] / 2**30, "GiB"),
        Row(f"{what}: peak over estimate", ratio, "", 1 + CLOSE if fits else None, True, look),
        Row(f"{what}: estimate over peak", 1 / ratio if ratio else None, "", 1 + CLOSE if fits else None, True, look),
    ]
