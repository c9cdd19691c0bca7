"""Pairs a second and memory against TRL, and what each of our steps adds: all systems in turns, in one run.

    python -m examples.benchmarks.compare --data hh-like
    python -m examples.benchmarks.compare --data pairs.jsonl.gz --tokenizer FOLDER --max-length 2048 --out results
    python -m examples.benchmarks.compare --data pairs.jsonl.gz --model FOLDER --adapter 16 --max-length 512

Every system makes the same optimizer steps: the same model, pairs in the same order, dtype and threads. They take
turns step by step, each in a process of its own, so that they meet the same noise; the first two steps are left out and
medians reported: pairs a second, tokens a second (logical ones, 2P + C + R, for everyone), the process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.benchmarks import workload
from examples.benchmarks.contestants import Ours, Task, Trl, serve

WARM_UP = 2

LADDER: dict[str, Ours | Trl] = {
    "TRL, defaults": Trl(8, defaults=True),
    "TRL, 8 pairs a micro-batch": Trl(8),
    "TRL, 4 pairs": Trl(4),
    "TRL, 2 pairs": Trl(2),
    "TRL, 1 pair": Trl(1),
    "padded": Ours("padded", scored_only=False, cached=False),
    "+ no padding": Ours("unpadded", scored_only=False, cached=False),
    "+ shared prompts": Ours("shared", scored_only=False, cached=False),
    "+ head on scored tokens": Ours(cached=False),
    "+ token budget": Ours(cached=False, budget=2048),
    "+ cached reference": Ours(budget=2048),
    "+ activation checkpointing": Ours(budget=2048, checkpointing=True),
}
WHOLE = "whole training"
# With --adapter: LoRA on all linear layers, and the same steps of whole training.
ADAPTED: dict[str, Ours | Trl] = {
    "TRL, 8 pairs a micro-batch": Trl(8, adapted=True),
    "TRL, 4 pairs": Trl(4, adapted=True),
    "TRL, 2 pairs": Trl(2, adapted=True),
    "TRL, 1 pair": Trl(1, adapted=True),
    WHOLE: Ours(budget=2048),
    "adapter": Ours(budget=2048, adapted=True),
}
YARDSTICK = "TRL, 8 pairs a micro-batch"


def main() -> None:
    options = arguments(__doc__)
    ladder = LADDER if options.adapter is None else ADAPTED
    names = [n for n in ladder if options.only is None or n in options.only]
    if any(isinstance(ladder[n], Trl) for n in names) and not find_spec("trl"):
        raise SystemExit('TRL is not installed: pip install -e ".[bench]", or choose our own rungs with --only')
    with tempfile.TemporaryDirectory() as folder:
        task, pairs = make_task(options, Path(folder))
        measured = take_turns({n: ladder[n] for n in names}, task)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **describe(options, pairs),
        "systems": {},
    }
    for name, (seconds, peak) in measured.items():
        report["systems"][name] = summarise(seconds, peak, task)
    lengths = [[(len(p.prompt), len(p.chosen), len(p.rejected)) for p in step] for step in task.steps[WARM_UP:]]
    report |= {"lengths": lengths, "vocabulary": task.vocabulary}
    show(report)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{report['date'][:10]}-{options.label}"
    stem.with_suffix(".json").write_text(json.dumps(report) + "\n")
    draw(report, stem.with_suffix(".png"))
    print(f"{stem}.json and {stem}.png")


def arguments(described: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="hh-like", help='a file of pairs, or "hh-like": made from a seed')
    parser.add_argument("--tokenizer", type=Path, help="its folder; without one, random ids of 2,001 tokens (hh-like)")
    parser.add_argument("--model", type=Path, help="a folder with a model and its tokenizer, in place of a random one")
    parser.add_argument("--adapter", type=int, metavar="R", help="train LoRA of this rank on all linear layers")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--grouped", action="store_true", help="pairs of one prompt behind one another")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--intermediate", type=int, default=1376)
    parser.add_argument("--pairs", type=int, default=8, help="in an optimizer step")
    parser.add_argument("--steps", type=int, default=10, help="that are measured, after two to warm up")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[*LADDER, *ADAPTED], help="some of the systems")
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    if options.pairs % 8:
        parser.error(f"--pairs {options.pairs}: TRL's micro-batches of 8, 4, 2 and 1 pair need a multiple of 8")
    options.label = Path(options.data).name.split(".")[0] + ("-grouped" if options.grouped else "")
    options.label += ("" if options.model is None else f"-{options.model.name}") + ("-lora" if options.adapter else "")
    return options


def make_task(options: argparse.Namespace, folder: Path) -> tuple[Task, list[workload.Pair]]:
    """Write the model and choose the pairs."""
    from dpo.text.tokenizers import byte_tokenizer, load_tokenizer

    needed = (options.steps + WARM_UP) * options.pairs
    source = options.model or options.tokenizer
    if options.data == "hh-like":
        pairs, vocabulary, tokenizer = workload.hh_like(needed, 2001, options.seed), 2001, byte_tokenizer()
    elif source is None:
        raise SystemExit("--data with a file needs --tokenizer FOLDER or --model FOLDER")
    else:
        tokenizer = load_tokenizer(str(source)) if options.model else workload.benchmark_tokenizer(source)
        pairs, vocabulary = workload.read_pairs(Path(options.data), tokenizer, options.max_length, options.seed)
    if options.grouped:
        pairs = workload.grouped(pairs)
    if len(pairs) < needed:
        raise SystemExit(f"{options.data} has {len(pairs)} usable pairs; {needed} are needed, so lower --steps")
    pairs = pairs[:needed]
    model = options.model
    if model is None:
        config = workload.llama(
            vocabulary, options.hidden, options.layers, options.heads, options.intermediate, options.max_length
        )
        model = write_model(config, tokenizer, folder, options.seed)
    adapter = None if options.adapter is None else write_adapter(model, options.adapter, folder)
    steps = [pairs[i : i + options.pairs] for i in range(0, needed, options.pairs)]
    return Task(model, steps, vocabulary, options.dtype, options.threads, options.device, adapter), pairs


def write_model(config: dict[str, Any], tokenizer: Any, folder: Path, seed: int = 0) -> Path:
    """A folder with a random model and a tokenizer, as TRL wants one."""
    from dpo.lm.hf import HuggingFaceModel

    HuggingFaceModel.random(config, seed).network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def write_adapter(model: Path, rank: int, folder: Path) -> Path:
    """A folder with new LoRA on all linear layers of a model, alpha twice the rank."""
    from dpo.lm.adapters import draw
    from dpo.lm.hf import HuggingFaceModel
    from dpo.lm.model_config import read_config

    network = HuggingFaceModel.load(model, read_config(model), torch.float32).network
    adapted = draw(network, {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}, seed=0)
    (folder / "adapter").mkdir()
    adapted.write(folder / "adapter", adapted.trained(), str(model))
    return folder / "adapter"


def take_turns(contestants: dict[str, Ours | Trl], task: Task) -> dict[str, tuple[list[float], int]]:
    """Seconds of every measured step and the peak memory of each system."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    processes: dict[str, Any] = {}
    for name, contestant in contestants.items():
        pipes[name], theirs = context.Pipe()
        processes[name] = context.Process(target=serve, args=(contestant, task, theirs), daemon=True)
        processes[name].start()
        theirs.close()  # or the end of a process that failed would never be noticed
        _answer(name, pipes[name], processes[name])  # set up one after another, so that no set-up disturbs a step
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks = dict.fromkeys(contestants, 0)
    for step in range(len(task.steps)):
        for name, pipe in pipes.items():
            pipe.send("step")
            took, peaks[name] = _answer(name, pipe, processes[name])
            seconds[name].append(took)
        print(
            f"step {step + 1} of {len(task.steps)}: " + ", ".join(f"{s[-1]:.2f}" for s in seconds.values()), flush=True
        )
    for pipe in pipes.values():
        pipe.send("end")
    return {name: (seconds[name][WARM_UP:], peaks[name]) for name in contestants}


def _answer(name: str, pipe: Any, process: Any) -> tuple[float, int]:
    """The answer of a system, or the end of the benchmark where its process has ended."""
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        why = "the system killed it, most likely for memory" if process.exitcode == -9 else "see above"
        raise SystemExit(f"The process of {name!r} ended with exit code {process.exitcode}: {why}.") from None


def describe(options: argparse.Namespace, pairs: list[workload.Pair]) -> dict[str, Any]:
    """What was measured, on what."""
    mean = {side: statistics.mean(len(getattr(p, side)) for p in pairs) for side in ("prompt", "chosen", "rejected")}
    shape = {k: getattr(options, k) for k in ("dtype", "device", "threads")}
    if options.model is None:
        shape |= {k: getattr(options, k) for k in ("hidden", "layers", "heads", "intermediate")}
    else:
        shape |= {"name": options.model.name}
    packages = ("torch", "transformers", "trl", "deepspeed", "ray")
    return {
        "data": options.label,
        "pairs_per_step": options.pairs,
        "max_length": options.max_length,
        "adapter": options.adapter,
        "mean_tokens": {k: round(v, 1) for k, v in mean.items()},
        "model": shape,
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
        "versions": {name: version(name) if find_spec(name) else None for name in packages},
    }


def summarise(seconds: list[float], peak: int, task: Task) -> dict[str, Any]:
    steps = task.steps[WARM_UP:]
    rates = [len(pairs) / s for pairs, s in zip(steps, seconds, strict=True)]
    tokens = [sum(p.logical_tokens for p in pairs) / s for pairs, s in zip(steps, seconds, strict=True)]
    return {
        "pairs_per_second": statistics.median(rates),
        "logical_tokens_per_second": statistics.median(tokens),
        "seconds": [round(s, 4) for s in seconds],
        "total_seconds": sum(seconds),
        "peak_bytes": peak,
    }


def speed_up(report: dict[str, Any], name: str, base: str) -> float | None:
    """How many times as fast: the median over steps, each compared with the same step of the other."""
    if base not in report["systems"]:
        return None
    ours, theirs = (report["systems"][n]["seconds"] for n in (name, base))
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['data']}: {report['pairs_per_step']} pairs a step, {report['model']['dtype']}")
    for column in ("system", "pairs/s", "tokens/s", f"against {YARDSTICK}", "peak GB"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, row in report["systems"].items():
        ratio = speed_up(report, name, YARDSTICK)
        against = "" if ratio is None else f"{ratio:.2f}x"
        rates = f"{row['pairs_per_second']:.3g}", f"{row['logical_tokens_per_second']:,.0f}"
        table.add_row(name, *rates, against, f"{row['peak_bytes'] / 1e9:.2f}")
    Console().print(table)


def draw(report: dict[str, Any], path: Path) -> None:
    """Pairs a second and peak memory as bars."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(report["systems"])
    colours = ["#9aa5b1" if name.startswith("TRL") else "#2f6fde" for name in names]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.42 * len(names) + 1.4), sharey=True, layout="constrained")
    quantities = (("pairs a second", "pairs_per_second", 1.0), ("peak memory, GB", "peak_bytes", 1e-9))
    for axis, (title, key, factor) in zip(axes, quantities, strict=True):
        values = [report["systems"][name][key] * factor for name in names]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.set_title(title, loc="left")
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(f"{report['data']}, {report['pairs_per_step']} pairs a step ({report['date'][:10]})")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
