"""Make preference pairs about what belongs to which kind: seeded, with a right and a wrong answer to every question.

    python examples/make_data.py FOLDER [SEED]

writes FOLDER/train.jsonl and FOLDER/eval.jsonl. No prompt is in both.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

KINDS = {
    "fish": ["salmon", "trout", "herring", "tuna", "carp", "pike"],
    "bird": ["robin", "eagle", "sparrow", "heron", "crow", "finch"],
    "tree": ["oak", "birch", "maple", "willow", "cedar", "elm"],
    "tool": ["hammer", "saw", "chisel", "wrench", "drill", "spade"],
    "fruit": ["apple", "plum", "cherry", "pear", "mango", "fig"],
}
NAMES = "Ana Ben Cleo Dev Eva Finn Gus Hana Ivan June Kofi Lena Max Nora Omar Pia".split()
FRAMES = ["{name} asks: is {thing} {kind}?", "{name} wonders whether {thing} is {kind}.", "Tell {name}: is {thing} {kind}?"]
TRAIN, EVAL = 2400, 320


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def question(name: str, frame: str, thing: str, kind: str, right: bool) -> dict[str, str]:
    """One pair: the same two answers, and the truth decides which of them is chosen."""
    fields = {"name": name, "thing": article(thing), "kind": article(kind)}
    yes = " Yes, {name}: {thing} is {kind}.".format(**fields)
    no = " No, {name}: {thing} is not {kind}.".format(**fields)
    chosen, rejected = (yes, no) if right else (no, yes)
    return {"prompt": frame.format(**fields), "chosen": chosen, "rejected": rejected}


def make(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out pairs. Half of all questions have the answer yes."""
    things = {thing: kind for kind, members in KINDS.items() for thing in members}
    right, wrong = [], []
    for name, frame, thing, kind in itertools.product(NAMES, FRAMES, things, KINDS):
        (right if things[thing] == kind else wrong).append(question(name, frame, thing, kind, things[thing] == kind))
    draw = random.Random(seed)
    half = (TRAIN + EVAL) // 2
    pairs = draw.sample(right, half) + draw.sample(wrong, half)
    draw.shuffle(pairs)
    return pairs[:TRAIN], pairs[TRAIN:]


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in zip(("train", "eval"), make(seed), strict=True):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        print(f"{len(pairs):,} pairs in {path}")


if __name__ == "__main__":
    main()
