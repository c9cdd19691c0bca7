"""What Ray Data and Ray Train cost around the training loop: the same job with and without them, in turns by step.

    python -m examples.benchmarks.ray_overhead --data pairs.jsonl.gz --tokenizer FOLDER

Without Ray, one process reads the same windows with pyarrow and runs the same loop with the same DeepSpeed engine. Both
run at the same time and pass a turn to each other after every step, so that they meet the same noise: whole runs
differ by more than what is measured. Ray's own processes live all the while and slow both down alike, so the CPU time
that they take is counted and reported beside the ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from dpo.text.pairs import PreferencePair, read_pair
from examples.benchmarks import workload
from pipeline.data.rows import read_rows

WARM_UP = 2
NAMES = ("with Ray", "without")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file of pairs")
    parser.add_argument("--tokenizer", type=Path, required=True, help="its folder")
    parser.add_argument("--steps", type=int, default=20, help="that are measured, after two to warm up")
    parser.add_argument("--pairs", type=int, default=8, help="in an optimizer step")
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps, ray_cpu = take_turns(options, Path(folder))
    ours, theirs = ([row["seconds"] for row in steps[name]] for name in NAMES)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": options.data.name.split(".")[0],
        "seconds_a_step": {name: statistics.median(row["seconds"] for row in steps[name]) for name in NAMES},
        "overhead": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) - 1,
        "overhead_of_totals": sum(ours) / sum(theirs) - 1,
        "ingest_share": statistics.median(row["ingest"] / row["seconds"] for row in steps["with Ray"]),
        "ray_cpu_share": ray_cpu,
        "steps": steps,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{report['date'][:10]}-ray-overhead.json"
    path.write_text(json.dumps(report) + "\n")
    medians = report["seconds_a_step"]
    print(f"median of {len(ours)} steps: {medians['with Ray']:.3f} s with Ray, {medians['without']:.3f} s without")
    print(f"overhead {report['overhead']:+.1%} (median of ratios), {report['overhead_of_totals']:+.1%} in total")
    print(f"waiting for data: {report['ingest_share']:.2%} of a step")
    largest = sorted(ray_cpu.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name} {share:.1%}" for name, share in largest)
    print(f"Ray's processes take {sum(ray_cpu.values()):.1%} of the cores: {shown}, ...")
    print(path)


def take_turns(options: argparse.Namespace, folder: Path) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """Every measured step of each kind, and the share of the machine's CPU time that Ray's processes took."""
    from pipeline.claim import claim
    from pipeline.cluster import group
    from pipeline.cluster.connect import disconnect
    from pipeline.cluster.items import on_ray
    from pipeline.config import Config
    from pipeline.models.start import InitialPolicy
    from pipeline.place import Place
    from pipeline.stages.order import order
    from pipeline.stages.preflight import preflight
    from pipeline.stages.prepare import prepare
    from pipeline.stages.score import score
    from pipeline.stages.train import preference_job

    place = Place.of(Config.load(str(write_config(options, folder))))
    inputs, each = preflight(place), on_ray(place)
    claim(place.config, place.run_dir, place.workspace)
    tokens = prepare(place, inputs, each).result
    start = InitialPolicy(place, inputs.policy, len(inputs.tokenizer)).weights()
    epochs = order(place, inputs, each, tokens, score(place, inputs, tokens, start).result).result
    job = preference_job(place, inputs, start, epochs, folder / "weights", "benchmark")
    own = {}
    for name in NAMES:
        paths = {part: str(folder / name.replace(" ", "-") / part) for part in ("weights", "logs", "checkpoints")}
        for path in paths.values():
            Path(path).mkdir(parents=True)
        own[name] = replace(job, **paths)
    (folder / "turn").write_text(NAMES[0])
    other = multiprocessing.get_context("spawn").Process(
        target=without_ray, args=(own["without"], epochs.feed.epochs, folder)
    )
    other.start()
    watch = RayWatch(other.pid or 0, folder / f"{NAMES[0]}.jsonl")
    group._worker = with_turns(folder)  # what Ray sends to the worker
    group.run_group(place, "train", own["with Ray"], epochs.feed)
    shares = watch.shares()
    other.join()
    disconnect()
    lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in NAMES}
    return {name: [json.loads(line) for line in lines[name]][WARM_UP:] for name in NAMES}, shares


def with_turns(folder: Path) -> Any:
    """The worker's function, with steps that take turns."""

    def work(config: dict[str, Any]) -> dict[str, Any]:
        from pipeline.cluster import group, steps

        plain = steps._steps
        steps._steps = lambda feed, paths: in_turns(plain(feed, paths), "with Ray", folder)
        return group._worker(config)

    return work


def in_turns(steps: Iterator[pa.Table], name: str, folder: Path) -> Iterator[pa.Table]:
    """Wait for the turn before a step, pass it on after it, and write down how long the step took.

    The last step is not written down: whoever takes steps does not come back after it.
    """
    turn, other = folder / "turn", NAMES[1 - NAMES.index(name)]
    try:
        while True:
            while turn.read_text() not in (name, "anyone's"):
                time.sleep(0.01)
            began = time.perf_counter()
            table = next(steps)
            ingest = time.perf_counter() - began
            yield table
            with (folder / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps({"seconds": time.perf_counter() - began, "ingest": ingest}) + "\n")
            pass_on(turn, other)
    finally:
        pass_on(turn, "anyone's")


def pass_on(turn: Path, name: str) -> None:
    beside = turn.with_name(f".turn.{os.getpid()}")
    beside.write_text(name)
    beside.replace(turn)


class RayWatch:
    """CPU time of Ray's own processes, all below this one but those that train, from the first measured step on."""

    def __init__(self, other: int, steps: Path):
        self.other, self.steps = other, steps
        self.before: dict[str, float] = {}
        self.began = 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        while not (self.steps.exists() and len(self.steps.read_text().splitlines()) >= WARM_UP):
            if self.stop.wait(0.5):
                return
        self.before, self.began = self._seconds(), time.monotonic()
        while not self.stop.wait(0.5):
            if len(self.steps.read_text().splitlines()) > WARM_UP:
                self.after, self.ended = self._seconds(), time.monotonic()

    def shares(self) -> dict[str, float]:
        """Of each kind of process: CPU seconds a second and core, until shortly before the last step."""
        self.stop.set()
        self.thread.join()
        wall = (self.ended - self.began) * multiprocessing.cpu_count()
        return {name: (used - self.before.get(name, 0.0)) / wall for name, used in self.after.items()}

    def _seconds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for process in psutil.Process().children(recursive=True):
            try:
                line = process.cmdline()
                if process.pid == self.other or not line or "RayTrainWorker" in line[0]:
                    continue
                scripts = [Path(word).name for word in line[:8] if word.endswith(".py")]
                name = (scripts or [Path(line[0]).name])[0]
                times = process.cpu_times()
                found[name] = found.get(name, 0.0) + times.user + times.system
            except psutil.Error:
                continue
        return found


def without_ray(job: Any, epochs: list[list[str]], folder: Path) -> None:
    """The loop in a process of its own."""
    import torch
    import torch.distributed as dist

    from pipeline.worker.loop import train

    def steps(epoch: int) -> Iterator[pa.Table]:
        for path in epochs[epoch]:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as rendezvous:
        dist.init_process_group("gloo", f"file://{rendezvous}/file", timedelta(seconds=60), 1, 0)
        device = torch.device("cpu")
        train(job, device, lambda epoch, first: in_turns(steps(epoch), "without", folder), lambda: iter(()))
        dist.destroy_process_group()


def write_config(options: argparse.Namespace, folder: Path) -> Path:
    """So many pairs of the file, and a random Llama of 27 million parameters."""
    count = (options.steps + WARM_UP + 1) * options.pairs  # one more: the last one has no measured end
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for row in read_rows(str(options.data)):
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
checkpoint_minutes = 600.0
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
