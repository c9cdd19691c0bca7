"""Make preference pairs about tone: a kind question wants a warm answer, a rude one a cool one.

    python examples/make_data.py FOLDER [SEED] [--messages]

writes FOLDER/train.jsonl and FOLDER/eval.jsonl, seeded (default: 0). No prompt is in both. With --messages the rows are
messages of a chat, else strings.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

NAMES = [
    "Ana",
    "Ben",
    "Cleo",
    "Dev",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivan",
    "June",
    "Kofi",
    "Lena",
    "Max",
    "Nora",
    "Omar",
    "Pia",
    "Quin",
    "Rosa",
    "Sam",
    "Tara",
    "Uma",
    "Vera",
    "Wen",
    "Yara",
]
TONES = {
    "please?": "warm",
    "if I may?": "warm",
    "thank you?": "warm",
    "now!": "cool",
    "hurry up!": "cool",
    "come on!": "cool",
}
PLACES = {
    "hall": ["lamp", "coat", "mirror", "umbrella"],
    "shed": ["rake", "ladder", "bike", "bucket"],
    "desk": ["pen", "letter", "ruler", "stapler"],
    "kitchen": ["kettle", "plate", "spoon", "apron"],
    "attic": ["trunk", "sled", "cradle", "globe"],
}
TRAIN, EVAL = 2400, 320


def pair(name: str, manner: str, thing: str, place: str) -> dict[str, str]:
    """One question with the answer whose tone fits it, and the same answer in the other tone."""
    answers = {"warm": f" With pleasure: it is in the {place}.", "cool": f" Calm down: it is in the {place}."}
    wanted = TONES[manner]
    unwanted = "cool" if wanted == "warm" else "warm"
    prompt = f"{name}: where is the {thing}, {manner}"
    return {"prompt": prompt, "chosen": answers[wanted], "rejected": answers[unwanted]}


def make(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out pairs; half of the questions want a warm answer."""
    things = [(thing, place) for place, members in PLACES.items() for thing in members]
    pairs = [pair(name, manner, *thing) for name, manner, thing in itertools.product(NAMES, TONES, things)]
    random.Random(seed).shuffle(pairs)
    return pairs[:TRAIN], pairs[TRAIN : TRAIN + EVAL]


def as_messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """The same pair as turns of a chat."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name].strip()}] for name, role in roles.items()}


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--messages"]
    folder, seed = Path(words[0]), int(words[1]) if len(words) > 1 else 0
    written = as_messages if "--messages" in sys.argv else dict
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in zip(("train", "eval"), make(seed), strict=True):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(written(pair)) + "\n" for pair in pairs), encoding="utf-8")
        print(f"{len(pairs):,} pairs in {path}")


if __name__ == "__main__":
    main()
