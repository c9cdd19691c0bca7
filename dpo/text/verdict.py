"""The verdict of a row with two answers -> the better one: "a", "b", or "tie"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from reprlib import repr as short  # a wrong value may be large or deeply nested
from typing import Any

from dpo.text.fields import Fields
from dpo.text.rejection import Rejection

FIRST, SECOND = {"a", "model_a", "response_a", "conversation_a"}, {"b", "model_b", "response_b", "conversation_b"}
# A tie, and what kind of one: "tie (bothbad)", "tie_both_good". Other words that begin so are names, as of a model.
TIE = re.compile(r"(tie|tied|ties)(\W|_)*((both|all|neither|none)?(\W|_)*(good|bad)?)\W*")
TIES = ("both", "both_bad", "bothbad", "neither")
Verdict = str | Mapping[str, str] | None  # the value of data.verdict


def better(fields: Fields, first: str, second: str, verdict: Verdict, column: str = "winner") -> str | Rejection:
    """Read the winner of a column, or the columns winner_model_a, winner_model_b and winner_tie.

    A number has no meaning of its own: data sets mean opposite things by 1, so `verdict` must say it.

    Returns:
        "a", "b" or "tie".
    """
    winner = fields.take(column)
    marks = [name for name in ("model_a", "model_b", "tie") if fields.take(f"winner_{name}") in (1, True, "1")]
    if winner is None:
        winner = marks[0] if len(marks) == 1 else None
    elif marks and marks != [winner]:
        return Rejection(f"{column!r} is {short(winner)}, and winner_{marks[0]} says otherwise")
    if verdict is not None and winner is not None:
        return said_by(winner, verdict)
    if winner is None and (other := _verdict_in(fields)) is not None:
        line = f'Write data.columns = {{ winner = "{other}" }}'
        more = "" if isinstance(fields.row[other], str) else f". {lines_for(fields.row[other])}"
        return Rejection(f"{first!r} and {second!r} need a {column!r} that says which is better. {line}{more}")
    if not isinstance(winner, str) or number_of(winner) is not None:
        needs = f"{first!r} and {second!r} need a {column!r} that says which is better, it is {short(winner)}"
        return Rejection(needs if winner is None else f"{needs}. {lines_for(winner)}")
    models = [str(fields.take(f"model_{side}")).strip() for side in "ab"]
    by_model = "ab"[models.index(winner.strip())] if winner.strip() in models and models[0] != models[1] else None
    by_word = side_named(winner, first, second)
    if by_model and by_word and by_model != by_word:
        return Rejection(
            f"{column!r} is {short(winner)}, which is the word for one answer and the model of the other; data.verdict "
            "says what it means"
        )
    if by_model or by_word:
        return by_model or by_word or ""
    own = winner if len(winner) < 40 else "..."
    return Rejection(
        f"{column!r} must name one of {first!r} and {second!r}, a model of 'model_a' or 'model_b', or a tie; it "
        f'is {short(winner)}. data.verdict = {{ "{own}" = "a" }} says what your words mean'
    )


def side_named(winner: Any, *names: str) -> str | None:
    """Return the answer that a word names, "tie", or None. `names` are further names of the first and the second."""
    name = winner.strip().lower() if isinstance(winner, str) else ""
    if TIE.fullmatch(name) or name in TIES:
        return "tie"
    if name in FIRST | SECOND:
        return "a" if name in FIRST else "b"
    return next((side for side, other in zip("ab", names, strict=False) if name == other.lower()), None)


WINNER = re.compile(r"(?i)winner|.*preference.*|labels?|choice|chosen|selected|better\w*|best\w*|verdict|judge?ment")


def _verdict_in(fields: Fields) -> str | None:
    """Return the column that seems to hold a verdict, by its name and as a single word or number."""
    return next((name for name, value in fields.row.items() if WINNER.fullmatch(name) and is_verdict(value)), None)


def is_verdict(value: Any) -> bool:
    """Tell whether a value may be a verdict: a number, or text of at most two words."""
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value.split()) <= 2)


def said_by(winner: Any, verdict: Verdict) -> str | Rejection:
    """Read a winner as data.verdict says: by a table of its values, as an index, or by its sign."""
    if isinstance(verdict, Mapping):
        found = verdict.get(_plain(winner))
        known = ", ".join(verdict)
        return found or Rejection(f"the verdict is {short(winner)}, and data.verdict says only what {known} mean")
    number = number_of(winner)
    if number is None:
        return Rejection(f"the verdict is {short(winner)}, and data.verdict = {verdict!r} needs a number")
    if verdict == "index":
        none = Rejection(f"the verdict is {short(winner)}, no index of two answers: 0 or 1")
        return "ab"[int(number)] if number in (0, 1) else none
    if number == 0:
        return "tie"
    return "a" if (number < 0) == (verdict == "negative-is-a") else "b"


def lines_for(winner: Any) -> str:
    """Return the lines of a configuration that would say what a verdict means."""
    number = number_of(winner)
    if isinstance(winner, bool):
        return 'Write data.verdict = { "true" = "a", "false" = "b" }, or the other way round'
    if number in (0, 1):
        return (
            'Write data.verdict = "index" if 0 means the first answer, data.verdict = { "1" = "a", "0" = "b" } if 1 '
            "does, or the like"
        )
    if number is not None:
        return (
            f'Write data.verdict = {{ "{_plain(winner)}" = "a" }} with every value there is, or "negative-is-a" or '
            '"positive-is-a" if its sign decides'
        )
    return "data.columns.winner and data.verdict name the column and what its values mean"


def _plain(value: Any) -> str:
    """Return a value as a key of data.verdict: 1 and 1.0 are "1", true is "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    number = number_of(value)
    return str(int(number)) if number is not None and number == int(number) else str(value).strip()


def number_of(value: Any) -> float | None:
    """Return a number, also one that is written as text, or None. Neither true nor infinity is one."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
