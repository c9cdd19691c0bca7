"""Common shapes of preference data -> one row with `prompt`, `chosen` and `rejected`.

The keys of a row alone decide its shape. A row of unknown shape is returned unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from reprlib import repr as short  # a wrong value may be large or deeply nested
from typing import Any

from dpo.text.rejection import Rejection

Row = Mapping[str, Any]

# A turn begins with a blank line and a speaker, as in Anthropic's HH data: "\n\nHuman: ... \n\nAssistant: ...".
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
CARRIED = ("system", "tools", "chat_template_kwargs")  # columns that every shape may have
ANSWERS = [("response_a", "response_b"), ("conversation_a", "conversation_b")]
FIRST, SECOND = {"a", "model_a", "response_a", "conversation_a"}, {"b", "model_b", "response_b", "conversation_b"}


def unified(row: Row) -> Row | Rejection:
    """Convert a row of any known shape to one with `chosen`, `rejected` and, if it is separate, `prompt`.

    The shapes: `chosen_messages` and `rejected_messages`; `conversations` (ShareGPT) with one answer per side;
    transcripts of Human and Assistant; two answers with a `winner`. Return a Rejection if the row has such a shape but
    no preference, for example a tie.
    """
    carried = {name: row[name] for name in CARRIED if name in row}
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
    if row.get("prompt") is None and all(is_transcript(row.get(side)) for side in ("chosen", "rejected")):
        return {**{side: turns_of(row[side]) for side in ("chosen", "rejected")}, **carried}
    return row


def mapped(row: Row, columns: Mapping[str, str]) -> Row | Rejection:
    """Rename the columns of a row; a dot reaches into an object ("answers.best"). A missing column is a Rejection."""
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
    """Read two answers and the winner: `winner`, or the columns winner_model_a, winner_model_b and winner_tie."""
    winner = row.get("winner")
    if winner is None:
        marked = [name for name in ("model_a", "model_b", "tie") if row.get(f"winner_{name}") in (1, True, "1")]
        winner = marked[0] if len(marked) == 1 else None
    if not isinstance(winner, str):
        return Rejection(f"{first!r} and {second!r} need a 'winner' that says which is better, it is {short(winner)}")
    name = winner.strip().lower()
    if name.startswith("tie") or name in ("both", "both_bad", "bothbad", "neither"):
        return Rejection(f"a tie ({short(winner)}) expresses no preference", "tie")
    if name not in FIRST | SECOND:
        return Rejection(f"'winner' must name one of {first!r} and {second!r}, or a tie; it is {short(winner)}")
    chosen, rejected = (first, second) if name in FIRST else (second, first)
    return {"prompt": row.get("prompt"), "chosen": row[chosen], "rejected": row[rejected]}


def is_transcript(value: Any) -> bool:
    """Tell whether a value is a text that begins with a turn of "Human:"."""
    return isinstance(value, str) and re.match(r"\s*Human:", value) is not None


def turns_of(text: str) -> list[dict[str, str]]:
    """Split a transcript into messages. Blanks around a turn are removed."""
    _, *pieces = TURN.split(text.lstrip())
    return [
        {"role": SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


SCORES = ("score", "overall_score", "rating", "reward")
TEXTS = ("response", "text", "content", "message", "messages")


def ranked(row: Row) -> list[tuple[Any, float]] | Rejection | None:
    """Return the scored answers of a row with a list of them; None for another shape; a Rejection for a fault.

    The answers are `completions` or `responses`: objects with a score each, or texts with a separate list `scores`,
    `ratings`, `rewards` or `ranks` (where 1 is the best).
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
    """Yield (better, worse) answers whose scores differ by more than `margin`: best and worst, or all such pairs."""
    order = sorted(answers, key=lambda answer: -answer[1])  # equal scores stay in the order of the row
    candidates = combinations([*order[:1], *order[-1:]] if pairing == "best_worst" else order, 2)
    return ((better, worse) for (better, high), (worse, low) in candidates if high - low > margin)
