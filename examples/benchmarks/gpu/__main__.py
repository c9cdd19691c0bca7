"""The first hour on a rented GPU, part by part: what was measured, what it should be, and what to look at next.

    python -m examples.benchmarks.gpu all --out results
    python -m examples.benchmarks.gpu 4 --work /mnt/nvme/benchmark
    python -m examples.benchmarks.gpu targets --card H200

Models have random weights, pairs random tokens with the lengths of real ones; there is no Ray, and nothing is fetched.
Each part is made to take less than 8 minutes on one H100, with --brief less than one.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks.gpu import lengths, report
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import show_table
from pipeline.models.cards import CARDS, local_card

PARTS = ("look", "numbers", "attention", "head", "step", "score", "memory", "resume", "peer")
WORDS = (*PARTS, *map(str, range(len(PARTS))), "all", "targets")


def main() -> None:
    options = arguments()
    if options.part == "targets":
        show_table(CARDS[options.card])
        return
    gpu = torch.cuda.is_available()
    if not (gpu or options.tiny):
        print("torch sees no GPU here; --tiny tries all parts on a CPU with a tiny model", file=sys.stderr)
        raise SystemExit(2)
    device = torch.device("cuda", 0) if gpu and not options.tiny else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    card = local_card() if device.type == "cuda" else None
    folder = tempfile.TemporaryDirectory() if options.work is None else nullcontext(options.work)
    with folder as work:
        setting = Setting(
            device, card, options.tiny, _quantiles(options), Path(work), options.out.resolve(), options.brief
        )
        for name in PARTS if options.part == "all" else [_named(options.part)]:
            run_part(setting, name)


def run_part(setting: Setting, name: str) -> None:
    """Measure one part, print its table and write its JSON. Other parts' libraries are not imported."""
    part: Any = importlib.import_module(f"examples.benchmarks.gpu.{name}")
    began = time.monotonic()
    found = part.measure(setting)
    seconds = time.monotonic() - began
    number = PARTS.index(name)
    report.show(f"part {number}, {name}, {seconds:.0f} s", found)
    print(report.write(setting.out, number, name, setting.about(), found, seconds), flush=True)
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()  # the next part may run in processes of its own


def _named(part: str) -> str:
    return PARTS[int(part)] if part.isdigit() else part


def _quantiles(options: argparse.Namespace) -> lengths.Quantiles:
    if options.tiny:
        return lengths.TINY
    if options.data is None:
        return lengths.SETS[options.lengths]
    return lengths.quantiles_of(options.data, options.tokenizer)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(PARTS))
    what = f"{numbered}; all: one after another; targets: a table of what a card should reach"
    parser.add_argument("part", choices=WORDS, metavar="PART", help=what)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU: everything but meaningful times")
    parser.add_argument("--brief", action="store_true", help="the first model alone and a quarter of the repeats")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the JSON files (gpu-results)")
    parser.add_argument(
        "--work", type=Path, help="folder of models and checkpoints, which wants 40 GB; by default a temporary one"
    )
    sets = {"choices": list(lengths.SETS), "default": "UltraFeedback"}
    add: Any = parser.add_argument
    add("--lengths", **sets, help="the set whose lengths pairs have; UltraFeedback by default")
    parser.add_argument("--data", type=Path, help="a file of pairs whose lengths are taken instead")
    parser.add_argument("--tokenizer", type=Path, help="the tokenizer's folder for --data")
    parser.add_argument("--card", choices=CARDS, default="H100", help="of the table of targets; H100 by default")
    options = parser.parse_args()
    if (options.data is None) != (options.tokenizer is None):
        parser.error("--data and --tokenizer go together")
    return options


if __name__ == "__main__":
    main()
