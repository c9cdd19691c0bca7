"""Whole runs on one model, in which an adapter is trained and then all weights: what each learns, takes and keeps.

    python -m examples.benchmarks.adapters --model FOLDER --data pairs.jsonl.gz --out results

Both runs are the command, with real Ray and DeepSpeed, and share a workspace. So the second one, which trains all
weights, reuses the log-probs of the first one's reference: a new adapter changes nothing, and both references are one
model. For step times against TRL, which take turns, see `compare --adapter`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.store.logs import read_steps

SETTINGS = """
[data]
train = "train.jsonl"
eval = "eval.jsonl"
max_length = {max_length}
strings = "messages"
[policy]
kind = "huggingface"
path = "{model}"
[train]
batch_pairs = 8
micro_batch_tokens = 2048
checkpoint_steps = 10
learning_rate = {whole}
[report]
tensorboard = false
show_answers = 0
"""
RATES = {"adapter": 1e-4, "whole training": 2e-6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a chat model and its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="a file of pairs: prompt, chosen, rejected as strings")
    parser.add_argument("--pairs", type=int, default=200, help="to train on")
    parser.add_argument("--held-out", type=int, default=80, help="pairs of other prompts, to evaluate on")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        deal(options, Path(folder))
        found = {name: one(Path(folder), name, options.rank) for name in RATES}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report = {
        "date": now,
        "model": options.model.name,
        "data": options.data.name,
        "pairs": options.pairs,
        "max_length": options.max_length,
        "rank": options.rank,
        "machine": f"{platform.machine()}, {platform.processor()}",
        "runs": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{now[:10]}-adapters-{options.model.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    for key in found["adapter"]:
        print(f"{key:28}", *(f"{name}: {run[key]:.6g}  " for name, run in found.items()))
    print(path)


def deal(options: argparse.Namespace, folder: Path) -> None:
    """Write the configuration and two files of pairs that have no prompt in common."""
    by_prompt: dict[str, list[str]] = {}
    for line in _lines(options.data):
        by_prompt.setdefault(json.loads(line)["prompt"], []).append(line)
    groups = list(by_prompt.values())
    random.Random(0).shuffle(groups)
    train: list[str] = []
    while groups and len(train) < options.pairs:
        train += groups.pop()
    held_out = [line for group in groups for line in group][: options.held_out]
    (folder / "train.jsonl").write_text("".join(train[: options.pairs]), encoding="utf-8")
    (folder / "eval.jsonl").write_text("".join(held_out), encoding="utf-8")
    settings = SETTINGS.format(
        max_length=options.max_length, model=options.model.resolve(), whole=RATES["whole training"]
    )
    (folder / "run.toml").write_text(settings, encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from file


def one(folder: Path, name: str, rank: int) -> dict[str, Any]:
    """One run of the command, and what it left."""
    words = [f"run.name={name.partition(' ')[0]}"]
    if name == "adapter":
        words += [f"policy.adapter.r={rank}", f"policy.adapter.alpha={2 * rank}", f"train.learning_rate={RATES[name]}"]
    subprocess.run([sys.executable, "-m", "pipeline", "run", folder / "run.toml", *words], check=True)
    run = folder / "runs" / name.partition(" ")[0]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    steps = [row for row in read_steps(run / "metrics.jsonl")[0] if "loss" in row]
    pairs = [row for part in sorted((run / "evaluation").glob("pairs-*")) for row in pq.read_table(part).to_pylist()]
    checkpoint = max((run / "checkpoints").glob("*-*"))
    return {
        "held-out pairs": len(pairs),
        "chosen likelier, before": _share(pairs, "reference"),
        "chosen likelier, after": _share(pairs, "policy"),
        "held-out reward accuracy": summary["eval_accuracy"],
        "first loss": summary["loss_first"],
        "steps": summary["steps"],
        "seconds per step, median": statistics.median(row["perf/step_seconds"] for row in steps),
        "peak memory, GiB": max(row["perf/peak_memory_gib"] for row in steps),
        "bytes of a checkpoint": sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()),
        "bytes of the export": sum(file.stat().st_size for file in (run / "export").rglob("*") if file.is_file()),
        "sequences scored": summary["sequences_scored"],
        "sequences reused": summary["sequences_reused"],
    }


def _share(pairs: list[dict[str, float]], model: str) -> float:
    """Of the held-out pairs, those whose chosen answer has the larger log-prob under a model."""
    return sum(pair[f"{model}_chosen"] > pair[f"{model}_rejected"] for pair in pairs) / len(pairs)


if __name__ == "__main__":
    main()
