"""Part 4: steps of training, as a worker takes them: speed, share of the peak, and a look into one step."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Literal

from torch.profiler import ProfilerActivity, profile

from examples.benchmarks.gpu.jobs import apart, join, make_job, run_job
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import BUDGET, TRAINING, training_seconds, work_of
from examples.benchmarks.gpu.trace import read_trace, seen_in

STAGES: tuple[Literal[1, 2], ...] = (1, 2)
STEPS, WARM_UP = 20, 4  # steps that are measured, and those before them
BUSY, WAITS = 0.95, 3  # of a step: share of its time, at least; waits for the GPU, at most


def measure(setting: Setting) -> Report:
    """Train each model at each stage; a step more at the end is profiled."""
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for name in setting.models:
        for stage in STAGES:
            found = apart(setting, take_steps, name, stage)
            details[f"{name}, stage {stage}"] = found
            rows += _rows(setting, f"{name}, stage {stage}", found)
    return Report(rows, details)


def take_steps(setting: Setting, name: str, stage: Literal[1, 2]) -> dict[str, Any]:
    """Run in a process of its own: the steps of one model at one stage."""
    pairs, warm_up, count, budget = (4, 1, 2, 64) if setting.tiny else (128, WARM_UP, setting.fewer(STEPS), BUDGET)
    folder = setting.work / f"step-{name}-{stage}"
    setting = join(setting, folder)
    steps = [setting.pairs(name, pairs, seed=number) for number in range(warm_up + count + 1)]
    job = make_job(folder, setting.folder(name), steps, stage, budget, more=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    profiler = profile(activities=activities)
    with profile(activities=activities):
        pass  # the profiler wants to be prepared by the main thread, and training has one of its own
    times: list[float] = []

    def at_step(step: int) -> None:
        if step == len(steps) - 1:
            profiler.start()
        times.append(time.perf_counter())
        if step == len(steps):
            profiler.stop()

    rows = run_job(setting, job, steps, at_step)[warm_up:-1]
    measured = steps[warm_up:-1]
    path = setting.out / f"4-step-{name}-stage{stage}.trace.json.gz"
    profiler.export_chrome_trace(str(path))
    ideal = None
    if setting.card is not None:
        ideal = sum(training_seconds(setting.shape(name), work_of(pairs), setting.card) for pairs in measured)
    return {
        "pairs": sum(map(len, measured)),
        "logical tokens": sum(pair.logical_tokens for pairs in measured for pair in pairs),
        "seconds": [row["perf/step_seconds"] for row in rows],
        "seconds at the target": ideal,
        "mfu": [row["perf/mfu"] for row in rows if "perf/mfu" in row],
        "gpu wait seconds": [row["perf/gpu_wait_seconds"] for row in rows if "perf/gpu_wait_seconds" in row],
        "peak GiB": rows[-1]["perf/peak_memory_gib"],
        "profiled seconds": times[-1] - times[-2],
        "profiled": seen_in(read_trace(path))._asdict(),
        "trace": path.name,
    }


def _rows(setting: Setting, what: str, found: dict[str, Any]) -> list[Row]:
    seconds, seen = sum(found["seconds"]), found["profiled"]
    rate = found["pairs"] / seconds
    at_target = found["seconds at the target"]
    target = None if at_target is None else found["pairs"] / at_target
    busy = seen["busy"] / 1e6 / found["profiled seconds"] if setting.on_gpu else None
    trace = f"{Path(found['trace']).name} in perfetto.dev"
    judged = setting.on_gpu
    return [
        Row(
            f"{what}: speed",
            rate,
            "pairs/s",
            target,
            look=f"whether the GPU is busy, and {trace}",
        ),
        Row(f"{what}: logical tokens", found["logical tokens"] / seconds, "tokens/s"),
        Row(
            f"{what}: share of the peak",
            statistics.median(found["mfu"]) if found["mfu"] else None,
            "",
            TRAINING if setting.card else None,
            look=f"the kernels that take longest: {[name[:60] for name, _ in seen['longest'][:3]]}",
        ),
        Row(f"{what}: busy", busy, "", BUSY if judged else None, look=f"the gaps between kernels in {trace}"),
        Row(
            f"{what}: waits in a step",
            seen["waits"] if judged else None,
            "",
            WAITS if judged else None,
            True,
            f"what the CPU does above each cudaStreamSynchronize in {trace}",
        ),
        Row(f"{what}: launches in a step", seen["launches"] if judged else None, ""),
        Row(f"{what}: peak memory", found["peak GiB"], "GiB"),
    ]
