"""How fast `ray-align prepare` reads a large file, in what memory, and how that compares with the bare tokenizer.

    python -m examples.benchmarks.ingest --folder /tmp/ingest --words pairs.jsonl.gz --tokenizer path/to/gpt2

The pairs are made: runs of words from real ones, about 1.7 KB a row. Bare means `tokenizers` alone, on all cores, on
prompt, chosen and rejected of the same rows, already in memory; the faster of encode_batch and encode_batch_fast.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from dpo.text.tokenizers import load_tokenizer
from pipeline.data.rows import read_rows

CONFIG = """
[data]
train = "pairs.jsonl"
max_length = 1024
[tokenizer]
path = {tokenizer}
[policy]
kind = "x-transformers"
[report]
tensorboard = false
"""


def make_pairs(path: Path, words: list[str], rows: int) -> None:
    """Each row is another one; each side begins somewhere else in the words."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        first = draw.randrange(len(words) - most)
        return " ".join(words[first : first + draw.randint(least, most)])

    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {"prompt": f"{number} {text(40, 80)}", "chosen": f" {text(60, 140)}", "rejected": f" {text(60, 140)}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def bare_rate(path: Path, folder: str, rows: int) -> float:
    """Rows a second of the tokenizer alone, on all cores."""
    backend = load_tokenizer(folder).backend_tokenizer
    with path.open(encoding="utf-8") as file:
        found = [json.loads(line) for line, _ in zip(file, range(rows), strict=False)]
    texts = [row[side] for row in found for side in ("prompt", "chosen", "rejected")]
    best = 0.0
    for encode in (backend.encode_batch, backend.encode_batch_fast):
        began = time.monotonic()
        for first in range(0, len(texts), 3000):
            for encoded in encode(texts[first : first + 3000]):
                _ = encoded.ids
        best = max(best, len(found) / (time.monotonic() - began))
    return best


def peak_bytes(pid: int | str) -> int:
    """The most memory that a process has had; 0 where it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def ray_tasks() -> list[str]:
    """Processes of Ray that run tasks."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                found.append(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def prepare(folder: Path) -> dict[str, float]:
    """Run the stage as a user does, and watch it."""
    shutil.rmtree(folder / "workspace", ignore_errors=True)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    began = time.monotonic()
    run = subprocess.Popen([sys.executable, "-m", "pipeline", "prepare", str(folder / "ingest.toml")])
    driver = tasks = 0
    while run.poll() is None:
        driver = max(driver, peak_bytes(run.pid))
        tasks = max([tasks, *map(peak_bytes, ray_tasks())])
        time.sleep(0.5)
    if run.returncode:
        raise SystemExit(f"prepare ended with {run.returncode}")
    summary = json.loads((folder / "runs/run/summary.json").read_text(encoding="utf-8"))
    return {
        "rows": summary["pairs_used"],
        "seconds": time.monotonic() - began,
        "stage_seconds": summary["seconds"]["prepare"],
        "driver_peak_bytes": driver,
        "task_peak_bytes": tasks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the made pairs and the workspace: some GB")
    parser.add_argument("--words", required=True, help="a file of pairs whose words are used")
    parser.add_argument("--tokenizer", required=True, help="its folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--bare-rows", type=int, default=30_000, help="rows that the bare tokenizer is timed on")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = (str(row.value.get(side)) for row in read_rows(options.words) for side in ("prompt", "chosen", "rejected"))
    words = " ".join(texts).split(" ")
    options.folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(tokenizer=json.dumps(str(Path(options.tokenizer).resolve())))
    (options.folder / "ingest.toml").write_text(config, encoding="utf-8")
    pairs = options.folder / "pairs.jsonl"
    for rows in options.rows:
        make_pairs(pairs, words, rows)
        before = bare_rate(pairs, options.tokenizer, options.bare_rows)
        result = prepare(options.folder)
        after = bare_rate(pairs, options.tokenizer, options.bare_rows)
        result |= {
            "file_bytes": pairs.stat().st_size,
            "rows_per_second": result["rows"] / result["seconds"],
            "bare_rows_per_second": (before + after) / 2,
        }
        result["bare_over_ours"] = result["bare_rows_per_second"] / result["rows_per_second"]
        print(json.dumps({name: round(value, 2) for name, value in result.items()}), flush=True)


if __name__ == "__main__":
    main()
