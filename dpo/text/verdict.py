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
# Words that say of two answers that none is better. A name such as "Tiefighter" is none of them.
TIE = re.compile(
    r"(?i)(tie|tied|ties|draw|equal|equals|same|both|neither|no[ _-]preference)([ _-]?\(?(both)?[ _-]?(bad|good)\)?)?"
)
TIED = re.compile(r"(?i)\b(tie|tied|ties|draw|equal|equally|same|both|neither|no preference)\b|^[^<>]*=[^<>]*$")
MARKED = (1, True, "1", "1.0", "true", "True")  # of the columns winner_model_a, winner_model_b and winner_tie
Verdict = str | Mapping[str, str] | None  # the value of data.verdict


def better(fields: Fields, first: str, second: str, verdict: Verdict, column: str = "winner") -> str | Rejection:
    """Read the winner of a column, or the columns winner_model_a, winner_model_b and winner_tie.

    A number has no meaning of its own: data sets mean opposite things by 1, so `verdict` must say it.

    Returns:
        "a", "b" or "tie".
    """
    winner = fields.take(column)
    marks = [name for name in ("model_a", "model_b", "tie") if fields.take(f"winner_{name}") in MARKED]
    if winner is None:
        winner = marks[0] if len(marks) == 1 else None
    elif marks and marks != [winner]:
        return Rejection(f"{column!r} is {short(winner)}, and winner_{marks[0]} says otherwise")
    if verdict is not None and winner is not None:
        return said_by(winner, verdict)
    if not isinstance(winner, str) or number_of(winner) is not None:
        return Rejection(f"{first!r} and {second!r} need a {column!r} that says which is better, it is {short(winner)}")
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
    return Rejection(
        f"{column!r} must name one of {first!r} and {second!r}, a model of 'model_a' or 'model_b', or a tie; it "
        f"is {short(winner)}"
    )


def side_named(winner: Any, *names: str) -> str | None:
    """Return the answer that a word names, "tie", or None. `names` are further names of the first and the second."""
    name = winner.strip().lower() if isinstance(winner, str) else ""
    if TIE.fullmatch(name):
        return "tie"
    if name in FIRST | SECOND:
        return "a" if name in FIRST else "b"
    return next((side for side, other in zip("ab", names, strict=False) if name == other.lower()), None)


def said_by(winner: Any, verdict: Verdict) -> str | Rejection:
    """Read a winner as data.verdict says: by a table of its values, as an index, or by its sign."""
    if isinstance(verdict, Mapping):
        own = _plain(winner)
        found = verdict.get(own) or ("tie" if TIE.fullmatch(own) else None)
        return found or Rejection(
            f"the verdict is {short(winner)}, which is none of those in data.verdict ({', '.join(verdict)}). Add "
            f'"{own:.40}" to it, as "a", "b" or "tie"'
        )
    number = number_of(winner)
    if number is None:
        return Rejection(f"the verdict is {short(winner)}, and data.verdict = {verdict!r} needs a number")
    if verdict == "index":
        none = Rejection(f"the verdict is {short(winner)}, no index of two answers: 0 or 1")
        return "ab"[int(number)] if number in (0, 1) else none
    if number == 0:
        return "tie"
    return "a" if (number < 0) == (verdict == "negative-is-a") else "b"


def choices_for(winner: Any, first: str = "", second: str = "") -> tuple[tuple[Verdict, str], ...]:
    """Return the values of data.verdict that could be meant by a winner, each with the words that say when.

    Args:
        first, second: columns of the two answers; numbers at their ends tell how answers are counted.
    """
    number = number_of(winner)
    if isinstance(winner, str) and winner.strip() in (first, second):
        return (({first: "a", second: "b"}, ""),)
    if isinstance(winner, bool):
        return (
            ({"true": "a", "false": "b"}, "if true means the first answer"),
            ({"true": "b", "false": "a"}, "if true means the second"),
        )
    if number is None:
        return _words_for(winner) if isinstance(winner, str) else ()
    from_0: tuple[Verdict, str] = ("index", "if 0 means the first answer and 1 the second")
    from_1: tuple[Verdict, str] = ({"1": "a", "2": "b"}, "if 1 means the first answer and 2 the second")
    signs = [(f"{sign}-is-a", f"if a number {side} 0 means the first") for sign, side in SIGNS]
    if number in (0, 1):
        tie: tuple[Verdict, str] = ({"0": "tie", "1": "a", "2": "b"}, "if 0 means a tie")
        counted = [from_0, ({"1": "a", "0": "b"}, "if 1 means the first and 0 the second")]
        last = [tie] if number == 0 else [from_1]
        return tuple(last + counted if second.endswith("2") and first.endswith("1") else counted + last)
    if number == 2:
        return (from_1, *signs)
    return () if 1 < number < 2 else tuple(signs)  # between 1 and 2: a mean of votes for them


SIGNS = (("negative", "below"), ("positive", "above"))
PLACES = (("a", "b"), ("0", "1"), ("1", "2"), ("one", "two"), ("left", "right"), ("first", "second"))


def _words_for(winner: str) -> tuple[tuple[Verdict, str], ...]:
    """Return what a word could mean: one with "first", "1" or "A" in it has a counterpart with "second", "2" or "B"."""
    own = winner.strip()
    if TIED.search(own):
        return (({own: "tie"}, "with an entry for every other word that there is"),)
    for one, other in PLACES[::-1]:
        if (one, other) == ("0", "1"):
            continue
        pattern = re.compile(rf"(?i)(?<![a-z0-9])({one}|{other})(?![a-z0-9])")
        found = pattern.findall(own)
        if found:
            turned = pattern.sub(lambda match: _turned(match[0], one, other), own)  # noqa: B023
            pair = (own, turned) if found[0].lower() == one else (turned, own)
            return (({pair[0]: "a", pair[1]: "b"}, "with an entry for every other word that there is"),)
    word = own if len(own) < 40 else "..."
    return (({word: "a"}, 'or "b" or "tie", with an entry for every word that there is'),)


def _turned(word: str, one: str, other: str) -> str:
    turned = other if word.lower() == one else one
    return turned.upper() if word.isupper() else turned.capitalize() if word[:1].isupper() else turned


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
