"""What the work costs on paper, and how much of the predicted speed-up was measured.

    python -m examples.benchmarks.flops examples/results/2026-11-21-hh-like.json

Reads a report of `compare`, which holds the lengths of its pairs. A layout decides how many positions are computed,
how many queries meet how many keys, and how many positions the head is given; `dpo/lm/flops.py` makes FLOP of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.flops import Work, training_flops
from dpo.lm.model_config import Shape
from examples.benchmarks.workload import llama


class Lengths(NamedTuple):
    """Tokens of one pair."""

    prompt: int
    chosen: int
    rejected: int


def padded(pairs: list[Lengths], scored_only: bool = False) -> Work:
    """Two rows a pair, all as long as the longest; causal kernels skip half of the square."""
    width = max(p.prompt + max(p.chosen, p.rejected) for p in pairs)
    tokens = 2 * len(pairs) * width
    return Work(tokens, 2 * len(pairs) * width**2, _scored(pairs) if scored_only else tokens)


def unpadded(pairs: list[Lengths], scored_only: bool = False) -> Work:
    tokens = sum(2 * p.prompt + p.chosen + p.rejected for p in pairs)
    squares = sum((p.prompt + p.chosen) ** 2 + (p.prompt + p.rejected) ** 2 for p in pairs)
    return Work(tokens, squares, _scored(pairs) if scored_only else tokens)


def shared(pairs: list[Lengths], scored_only: bool = True) -> Work:
    """The prompt once; the second completion's queries meet prompt and completion under a mask, nothing skipped."""
    tokens = sum(p.prompt + p.chosen + p.rejected for p in pairs)
    squares = sum((p.prompt + p.chosen) ** 2 + 2 * p.rejected * (p.prompt + p.rejected) for p in pairs)
    return Work(tokens, squares, _scored(pairs) if scored_only else tokens)


def _scored(pairs: list[Lengths]) -> int:
    return sum(p.chosen + p.rejected for p in pairs)


def shape_of(model: dict[str, Any], vocabulary: int) -> Shape:
    """The shape of a report's model, a Llama whose heads all have keys of their own."""
    return Shape.of(llama(vocabulary, model["hidden"], model["layers"], 1, model["intermediate"], 1))


# What each rung of `compare` computes: in training, and with its online reference, which is a forward pass more.
RUNGS = {
    "padded": (lambda p: padded(p), True),
    "+ no padding": (lambda p: unpadded(p), True),
    "+ shared prompts": (lambda p: shared(p, False), True),
    "+ head on scored tokens": (lambda p: shared(p), True),
    "+ token budget": (lambda p: shared(p), True),
    "+ cached reference": (lambda p: shared(p), False),
}


def step_flops(name: str, pairs: list[Lengths], model: dict[str, Any], vocabulary: int) -> float:
    layout, online = RUNGS[name]
    return training_flops(shape_of(model, vocabulary), layout(pairs)) * (4 / 3 if online else 1)


def predictions(report: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of each rung: how many times as fast as the padded one it should be over all steps, and how many it was."""
    steps = [[Lengths(*p) for p in step] for step in report["lengths"]]
    systems = report["systems"]
    found = {}
    for name in RUNGS:
        if name not in systems or "padded" not in systems:
            continue
        costs = {
            n: sum(step_flops(n, s, report["model"], report["vocabulary"]) for s in steps) for n in (name, "padded")
        }
        measured = systems["padded"]["total_seconds"] / systems[name]["total_seconds"]
        found[name] = (costs["padded"] / costs[name], measured)
    return found


def main() -> None:
    for path in sys.argv[1:]:
        report = json.loads(Path(path).read_text())
        print(f"{report['data']}: against our own padded rung")
        for name, (predicted, measured) in predictions(report).items():
            print(f"  {name:28} predicted {predicted:5.2f}x  measured {measured:5.2f}x  {measured / predicted:.2f}")


if __name__ == "__main__":
    main()
