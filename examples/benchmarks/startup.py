"""How long a run takes that has almost nothing to do: where the time goes before and around the first step.

    python -m examples.benchmarks.startup                                  # this checkout
    python -m examples.benchmarks.startup --tree OTHER --tree . --rounds 3 # two checkouts, in turns

It makes 40 pairs and a tiny Llama, and runs each checkout's command line on them: a run from command to end, the same
command again, and the doctor. The milestones are the times at which files appear; processes are watched from inside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAIRS = 40
CONFIG = """
[run]
name = "tiny"
[data]
train = "pairs.jsonl"
eval = 0.2
max_length = 64
[tokenizer]
path = "bytes"
[policy]
kind = "huggingface"
[policy.config]
model_type = "llama"
vocab_size = 258
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64
[train]
batch_pairs = 8
micro_batch_tokens = 512
learning_rate = 1e-3
"""
# Milestones: the file that appears with each, below the run's folder or the workspace.
MILESTONES = {
    "prepare done": ("workspace", "tokens/*/manifest.json"),
    "first log-probs": ("workspace", "cache/*/*.parquet"),
    "order done": ("runs/tiny", "epochs/manifest.json"),
    "step 1": ("runs/tiny", "metrics.jsonl"),
    "train done": ("runs/tiny", "weights/manifest.json"),
    "evaluate done": ("runs/tiny", "evaluation/manifest.json"),
    "export done": ("runs/tiny", "export/manifest.json"),
}
LIBRARIES = ("ray", "torch", "transformers", "deepspeed", "x_transformers", "torch._inductor.compile_fx")
# Runs in every process of the watched command: Python imports `sitecustomize` by itself where it finds one.
WATCHER = """
import json, os, sys, threading, time

def watch(folder, names):
    path = os.path.join(folder, f"{os.getpid()}.json")
    seen, titles, began = {}, [], time.time()
    while True:
        with open("/proc/self/cmdline", "rb") as file:
            title = file.read().replace(b"\\0", b" ").decode(errors="replace").strip()[:80]
        if title not in titles:
            titles.append(title)
        for name in names:
            if name in sys.modules:
                seen.setdefault(name, time.time())
        content = {"titles": titles, "began": began, "last": time.time(), "imported": seen}
        with open(path + ".new", "w") as file:
            json.dump(content, file)
        os.replace(path + ".new", path)
        time.sleep(0.1)

threading.Thread(target=watch, args=(os.environ["WATCHED"], os.environ["WATCHED_FOR"].split()), daemon=True).start()
"""


class Seen(NamedTuple):
    """A process of the watched command; times in seconds of `time.time()`."""

    titles: list[str]  # what it called itself, one after another
    began: float
    last: float
    imported: dict[str, float]  # library -> when it was there


def watch(folder: Path) -> dict[str, str]:
    """The environment in which a command's processes are watched, for `processes` to read below `folder`."""
    (folder / "site").mkdir(parents=True)
    (folder / "seen").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(WATCHER, encoding="utf-8")
    return {"WATCHED": str(folder / "seen"), "WATCHED_FOR": " ".join(LIBRARIES)}


def processes(folder: Path) -> list[Seen]:
    """The Python processes that were watched, in the order of their start."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "seen").glob("*.json")]
    return sorted((Seen(**content) for content in found), key=lambda seen: seen.began)


def make_pairs(path: Path) -> None:
    rows = (
        {"prompt": f"say word {i}:", "chosen": f" WORD {i}" + "!" * (i % 9), "rejected": f" word {i}" + "." * (i % 7)}
        for i in range(PAIRS)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(tree: Path, *arguments: str, watched: Path | None = None) -> subprocess.Popen[str]:
    """Start a checkout's command line, watched if a folder is given."""
    path, extra = [str(tree)], {}
    if watched is not None:
        path, extra = [str(watched / "site"), *path], watch(watched)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path), **extra}
    words = [sys.executable, "-m", "pipeline", *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, cwd=tree, env=environment, text=True, **output)  # type: ignore[call-overload]


def timed(process: subprocess.Popen[str], folder: Path, milestones: dict[str, float] | None = None) -> float:
    """Seconds until a command has ended; fills in when each milestone's file appeared.

    Raises:
        RuntimeError: the command failed.
    """
    began = time.time()
    while process.poll() is None:
        for name, (place, pattern) in MILESTONES.items() if milestones is not None else ():
            if name not in milestones and any(path.stat().st_size for path in (folder / place).glob(pattern)):
                milestones[name] = time.time() - began
        time.sleep(0.02)
    seconds = time.time() - began
    if process.returncode:
        raise RuntimeError(process.stdout.read() if process.stdout is not None else "")
    return seconds


def measure(tree: Path, folder: Path, watched: bool) -> dict[str, Any]:
    """One round of a checkout: a whole run, the same command again, the doctor on the same pairs."""
    folder.mkdir(parents=True)
    make_pairs(folder / "pairs.jsonl")
    config = folder / "tiny.toml"
    config.write_text(CONFIG, encoding="utf-8")
    milestones: dict[str, float] = {}
    place = folder / "watched" if watched else None
    whole = timed(command(tree, "run", str(config), watched=place), folder, milestones)
    again = timed(command(tree, "run", str(config)), folder)
    doctor = timed(
        command(tree, "doctor", str(config), "run.name=ill", f"run.workspace={folder / 'elsewhere'}"), folder
    )
    found = {"whole run": whole, "train to step 1": milestones["step 1"] - milestones["order done"]}
    result = {**found, "the same command again": again, "doctor": doctor, "milestones": milestones}
    if place is not None:
        result["processes"] = [seen._asdict() for seen in processes(place)]
    return result


def show(result: dict[str, Any]) -> None:
    """The timeline of a watched run."""
    for name, seconds in result["milestones"].items():
        print(f"  {seconds:6.1f} s  {name}")
    seen = [Seen(**content) for content in result["processes"]]
    first = seen[0].began
    for process in seen:
        imports = ", ".join(f"{name} {when - first:.1f}" for name, when in process.imported.items())
        title = " -> ".join(process.titles[-2:])[:70]
        print(f"  {process.began - first:6.1f} to {process.last - first:5.1f} s  {title}  [{imports}]")


def main() -> None:
    parser = argparse.ArgumentParser("python -m examples.benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--tree", action="append", type=Path, help="a checkout (this one); several are run in turns")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all checkouts (3)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON into this folder")
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.tree or [ROOT]]
    results: dict[str, list[dict[str, Any]]] = {str(tree): [] for tree in trees}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            for at, tree in enumerate(trees):
                found = measure(tree, Path(scratch) / f"{number}-{at}", watched=number == 0)
                results[str(tree)].append(found)
                shown = ", ".join(f"{name} {value:.1f} s" for name, value in found.items() if isinstance(value, float))
                print(f"round {number + 1}, {tree}: {shown}", flush=True)
                if number == 0:
                    show(found)
    for name in ("whole run", "train to step 1", "the same command again", "doctor"):
        medians = [statistics.median(found[name] for found in rounds) for rounds in results.values()]
        ratio = f", ratio {medians[-1] / medians[0]:.2f}" if len(medians) > 1 else ""
        print(f"{name}: median {', '.join(f'{value:.1f} s' for value in medians)}{ratio}")
    if options.out is not None:
        date = datetime.now().isoformat(timespec="seconds")
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {"date": date, "machine": machine, "python": platform.python_version(), "results": results}
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{date[:10]}-startup.json"
        text = json.dumps(report).replace(sys.prefix, "ENVIRONMENT")
        for number, tree in enumerate(trees):
            text = text.replace(str(tree), f"tree {number + 1}")
        path.write_text(text + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
