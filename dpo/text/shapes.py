"""The shapes in which people keep preferences -> one row with `prompt`, `chosen` and `rejected`.

Which shape a row has is told by its keys alone; a row of no known shape is returned as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from reprlib import repr as short  # of whatever size and depth a wrong value is
from typing import Any

from dpo.text.rejection import Rejection

Row = Mapping[str, Any]

# A blank line and a speaker begin a turn, as in Anthropic's HH data: "\n\nHuman: ... \n\nAssistant: ...".
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
ANSWERS = [("response_a", "response_b"), ("conversation_a", "conversation_b")]
FIRST, SECOND = {"a", "model_a", "response_a", "conversation_a"}, {"b", "model_b", "response_b", "conversation_b"}


def unified(row: Row) -> Row | Rejection:
    """A row of any known shape -> one with `chosen`, `rejected` and, where it stands apart, `prompt`.

    The shapes: `chosen_messages` and `rejected_messages`; `conversations` (ShareGPT) with an answer each side;
    transcripts of Human and Assistant; two answers with a `winner`. The reason is returned where the row has such a
    shape and still holds no preference, as a tie.
    """
    carried = {name: row[name] for name in ("system", "tools") if name in row}
    if "chosen_messages" in row and "rejected_messages" in row:
        sides = {side: row[f"{side}_messages"] for side in ("chosen", "rejected")}
        return {"prompt": row.get("prompt"), **sides, **carried}
    if "conversations" in row and "prompt" not in row:
        sides = {side: row.get(side) for side in ("chosen", "rejected")}
        return {"prompt": row["conversations"], **sides, **carried}
    for first, second in ANSWERS:
        if first in row and second in row and "chosen" not in row:
            judged = _judged(row, first, second)
            return judged if isinstance(judged, Rejection) else {**judged, **carried}
    if row.get("prompt") is None and all(_is_transcript(row.get(side)) for side in ("chosen", "rejected")):
        return {**{side: _turns(row[side]) for side in ("chosen", "rejected")}, **carried}
    return row


def mapped(row: Row, columns: Mapping[str, str]) -> Row | Rejection:
    """A row whose columns have other names; a dot reaches into an object ("answers.best"). Or what is missing."""
    found = {}
    for ours, theirs in columns.items():
        value: Any = row
        for name in [theirs] if theirs in row else theirs.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return Rejection(
                    f"no column {theirs!r}, which data.columns.{ours} names (the row has: {', '.join(map(str, row))})"
                )
            value = value[name]
        found[ours] = value
    return {**{name: value for name, value in row.items() if name not in columns.values()}, **found}


def _judged(row: Row, first: str, second: str) -> Row | Rejection:
    """Two answers and who won: `winner`, or the three columns winner_model_a, winner_model_b and winner_tie."""
    winner = row.get("winner")
    if winner is None:
        marked = [name for name in ("model_a", "model_b", "tie") if row.get(f"winner_{name}") in (1, True, "1")]
        winner = marked[0] if len(marked) == 1 else None
    if not isinstance(winner, str):
        return Rejection(f"{first!r} and {second!r} need a 'winner' that says which is better, it is {short(winner)}")
    name = winner.strip().lower()
    if name.startswith("tie") or name in ("both", "both_bad", "bothbad", "neither"):
        return Rejection(f"a tie ({short(winner)}) holds no preference", "tie")
    if name not in FIRST | SECOND:
        return Rejection(f"'winner' must name one of {first!r} and {second!r}, or a tie; it is {short(winner)}")
    chosen, rejected = (first, second) if name in FIRST else (second, first)
    return {"prompt": row.get("prompt"), "chosen": row[chosen], "rejected": row[rejected]}


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\s*Human:", value) is not None


def _turns(text: str) -> list[dict[str, str]]:
    """A transcript -> messages; what a turn holds is kept but for the blank around it."""
    _, *pieces = TURN.split(text.lstrip())
    return [
        {"role": SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


SCORES = ("score", "overall_score", "rating", "reward")
TEXTS = ("response", "text", "content", "message", "messages")


def ranked(row: Row) -> list[tuple[Any, float]] | Rejection | None:
    """The answers of a row that has a list of them, each with its score; None for another shape, or what is wrong.

    Either `completions` (or `responses`) as objects that hold their score, or as texts beside a list `scores`
    (`ratings`, `rewards`; or `ranks`, of which 1 is the best).
    """
    key = next((name for name in ("completions", "responses") if isinstance(row.get(name), list)), None)
    if key is None or "chosen" in row:
        return None
    answers = row[key]
    beside = next((name for name in ("scores", "ratings", "rewards", "ranks") if isinstance(row.get(name), list)), None)
    if beside is not None:
        if len(row[beside]) != len(answers):
            return Rejection(f"{key!r} has {len(answers)} answers and {beside!r} {len(row[beside])} values")
        found = list(zip(answers, row[beside], strict=True))
    else:
        found = [(_first_of(answer, TEXTS), _first_of(answer, SCORES)) for answer in answers]
    scored = []
    for number, (answer, score) in enumerate(found, 1):
        value = _number(score)
        if value is None:
            return Rejection(f"answer {number} of {key!r} has no score that is a number, but {short(score)}")
        scored.append((answer, -value if beside == "ranks" else value))
    return scored


def _first_of(answer: Any, names: tuple[str, ...]) -> Any:
    return next((answer[name] for name in names if name in answer), None) if isinstance(answer, Mapping) else None


def _number(score: Any) -> float | None:
    try:
        value = float(score) if not isinstance(score, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def paired(answers: list[tuple[Any, float]], pairing: str, margin: float) -> Iterator[tuple[Any, Any]]:
    """(better, worse) answers whose scores differ by more than `margin`: the best and the worst, or all of them."""
    order = sorted(answers, key=lambda answer: -answer[1])  # equal scores stay in the order of the row
    candidates = combinations([*order[:1], *order[-1:]] if pairing == "best_worst" else order, 2)
    return ((better, worse) for (better, high), (worse, low) in candidates if high - low > margin)
