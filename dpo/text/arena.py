"""Rows of LMSYS' and Kaggle's arena, whose prompt and answers are lists of texts, one a turn -> a pair."""

from __future__ import annotations

import re
from typing import Any

from dpo.text.cell import decoded
from dpo.text.fields import Fields
from dpo.text.rejection import Rejection
from dpo.text.shapes import SIDES, Found, Reading, message_of
from dpo.text.verdict import better

TURNS = ("prompt", "response_a", "response_b")
# Columns beside which such lists are turns. A prompt may also be a list by itself, such as ["pear", "fig"].
OF_ARENA = ("winner_model_a", "winner_model_b", "winner_tie", "model_a", "model_b")


def arena(fields: Fields, reading: Reading) -> Found:
    """Read prompt and answers that are lists in cells, with an entry for each turn."""
    written = any(isinstance(fields.peek(name), str) for name in TURNS)
    lists = {name: decoded(fields.take(name)) for name in TURNS}
    won = better(fields, "response_a", "response_b", reading.verdict)
    if isinstance(won, Rejection):
        return won
    if won == "tie":
        return Rejection("a tie expresses no preference", "tie")
    if written and len(lists["prompt"]) > 1 and fields.first(*OF_ARENA) is None:
        what = f"'prompt' is a list of {len(lists['prompt'])} texts in a cell, which may be turns or the text itself"
        return Rejection(f"{what}; write turns as messages")
    faults = (_fault_of(name, turns, len(lists["prompt"])) for name, turns in lists.items())
    fault = next((fault for fault in faults if fault is not None), None)
    if fault is not None:
        return fault
    first, *later = lists["prompt"]
    sides = {}
    for side, name in zip(SIDES, "ab" if won == "a" else "ba", strict=True):
        answer, *answers = lists[f"response_{name}"]
        more = [
            m for q, a in zip(later, answers, strict=True) for m in (message_of("user", q), message_of("assistant", a))
        ]
        sides[side] = [message_of("assistant", answer), *more]
    return {"prompt": [message_of("user", first)], **sides}


def _fault_of(name: str, turns: Any, asked: int) -> Rejection | None:
    """Find a fault of a list that should have as many texts as the prompt has."""
    if not isinstance(turns, list) or not all(turn is None or isinstance(turn, str) for turn in turns):
        return Rejection(f"{name!r} must be a list of texts, one for each turn, as the prompt is")
    if None in turns or not turns:
        return Rejection(f"turn {turns.index(None) + 1 if turns else 1} of {name!r} is null", "empty side")
    if any(re.search("[\ud800-\udfff]", turn) for turn in turns):
        return Rejection(f"{name!r} contains half of a surrogate pair", "broken text")
    return None if len(turns) == asked else Rejection(f"'prompt' has {asked} turns and {name!r} {len(turns)}")
