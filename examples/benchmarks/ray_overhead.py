"""What Ray Data and Ray Train cost around the training loop: the same job with them and without, in turns.

    python -m examples.benchmarks.ray_overhead --data pairs.jsonl.gz --tokenizer FOLDER

Without Ray, one process reads the same windows with pyarrow and runs the same loop with the same DeepSpeed engine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpo.pairs import PreferencePair, read_pair
from examples.benchmarks import workload
from pipeline.store.rows import read_rows

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file of pairs")
    parser.add_argument("--tokenizer", type=Path, required=True, help="its folder")
    parser.add_argument("--steps", type=int, default=10, help="that are measured, after two to warm up")
    parser.add_argument("--pairs", type=int, default=8, help="in an optimizer step")
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = take_turns(options, Path(folder))
    medians = {name: statistics.median(s for run in runs for s, _ in run) for name, runs in measured.items()}
    stalls = [ingest / seconds for run in measured["with Ray"] for seconds, ingest in run]
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds_a_step": medians,
        "overhead": medians["with Ray"] / medians["without"] - 1,
        "ingest_share": statistics.median(stalls),
        "steps": measured,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{report['date'][:10]}-ray-overhead.json"
    path.write_text(json.dumps(report) + "\n")
    print(f"median step: {medians['with Ray']:.3f} s with Ray, {medians['without']:.3f} s without")
    print(f"overhead {report['overhead']:+.1%}, waiting for data {report['ingest_share']:.2%} of a step; {path}")


def take_turns(options: argparse.Namespace, folder: Path) -> dict[str, list[list[tuple[float, float]]]]:
    """Seconds of every measured step and of its data, for each run of each kind."""
    from pipeline.config import Config
    from pipeline.place import Place
    from pipeline.stages.cluster import disconnect
    from pipeline.stages.fit import fit
    from pipeline.stages.order import order
    from pipeline.stages.prepare import prepare
    from pipeline.stages.score import score
    from pipeline.stages.start import initial_policy
    from pipeline.stages.train import preference_job

    place = Place(Config.load(str(write_config(options, folder))))
    place.open()
    tokens, start = prepare(place), initial_policy(place)
    epochs = order(place, tokens, score(place, tokens, start))
    job = preference_job(place, start, epochs, folder / "weights", "benchmark")
    measured: dict[str, list[list[tuple[float, float]]]] = {"with Ray": [], "without": []}
    for turn in range(options.turns):
        for name in measured:
            mine = folder / f"{turn}-{name.replace(' ', '-')}"
            for part in ("weights", "logs", "checkpoints"):
                (mine / part).mkdir(parents=True)
            paths = {part: str(mine / part) for part in ("weights", "logs", "checkpoints")}
            own = replace(job, **paths)
            if name == "with Ray":
                fit(place, "train", own, epochs.feed)
            else:
                context = multiprocessing.get_context("spawn")
                process = context.Process(target=without_ray, args=(own, epochs.feed.epochs))
                process.start()
                process.join()
            rows = [json.loads(line) for line in (mine / "logs" / "metrics.jsonl").read_text().splitlines()]
            measured[name].append([(r["perf/step_seconds"], r["perf/ingest_seconds"]) for r in rows[WARM_UP:]])
            print(f"turn {turn + 1}, {name}: median {statistics.median(s for s, _ in measured[name][-1]):.3f} s")
    disconnect()
    return measured


def without_ray(job: Any, epochs: list[list[str]]) -> None:
    """The loop in a process of its own."""
    import torch
    import torch.distributed as dist

    from pipeline.worker.loop import train

    def batches(epoch: int, first: int) -> Iterator[pa.Table]:
        for path in epochs[epoch]:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), 1, 0)
        train(job, torch.device("cpu"), batches, lambda: iter(()))
        dist.destroy_process_group()


def write_config(options: argparse.Namespace, folder: Path) -> Path:
    """So many pairs of the file, and a random Llama of 27 million parameters."""
    count = (options.steps + WARM_UP) * options.pairs
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for row in read_rows(options.data):
            if count and isinstance(read_pair(row.value), PreferencePair):
                out.write(json.dumps(row.value) + "\n")
                count -= 1
    vocabulary = len(workload.benchmark_tokenizer(options.tokenizer))
    config = workload.llama(vocabulary, 512, 8, 8, 1376, 1024)
    model = ", ".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
    cores = multiprocessing.cpu_count()
    (folder / "run.toml").write_text(
        f"""[run]
name = "overhead"
[data]
train = "pairs.jsonl"
[tokenizer]
path = "{options.tokenizer.resolve()}"
eos_token = "<|end|>"
[policy]
kind = "huggingface"
config = {{ {model} }}
[train]
batch_pairs = {options.pairs}
micro_batch_tokens = 2048
[report]
tensorboard = false
[cluster]
cpus_per_worker = {cores}
[reference]
cpus_per_actor = {cores}
"""
    )
    return folder / "run.toml"


if __name__ == "__main__":
    main()
