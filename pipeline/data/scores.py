"""A row and its pair -> whether the numbers that the row has for its two answers say the same as its preference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from dpo.text import proposals
from dpo.text.cell import decoded
from dpo.text.pairs import PreferencePair
from dpo.text.verdict import PLACES, number_of

CONTRADICT, EQUAL = "scores contradict", "scores equal"
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")  # of a name
NUMBERS = frozenset(["score", "scores", "rating", "ratings", "reward", "rewards", "rank", "ranks", "ranking", "elo"])
RANKS = frozenset(("rank", "ranks", "ranking"))  # the lower is better
# Words of the two sides in names, of which one is the better; those that only say their places are PLACES.
OPPOSITES = tuple(("_".join(one), "_".join(other)) for one, other in proposals.OPPOSITES)
# Words beside these in the name of a number that is about the whole answer, and not about its length or its politeness.
WHOLE = NUMBERS | {
    *("avg", "average", "mean", "overall", "total", "final", "rm", "pm", "model", "human", "gpt", "judge", "quality"),
    *("annotator", "meta", "metadata", "info"),
}


class Numbers(NamedTuple):
    """The names of two numbers, one for each answer.

    Attributes:
        lower: the lower is better.
        answers: where the names say only which answer is the first, the columns that may be the two answers.
    """

    first: str
    second: str
    lower: bool
    answers: tuple[tuple[str, str], ...] = ()


def said_by_scores(row: Mapping[str, Any], pair: PreferencePair) -> str | None:
    """Return the name of what is odd about the scores of a row, or None."""
    row = _flat(row)
    differences = [found for numbers in _numbers(tuple(row)) for found in _differences(row, pair, numbers)]
    if any(difference < 0 for difference in differences):
        return CONTRADICT
    if differences and not any(differences):
        return EQUAL
    return EQUAL if "chosen" in row and row.get("status") == "tie" else None


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row with the fields of its objects, such as "scores.chosen", as columns of their own."""
    inner = {}
    for name, value in row.items():
        held = decoded(value) if isinstance(value, str) and value[:1] == "{" and _about_all(name) else value
        if isinstance(held, Mapping):
            inner |= {f"{name}.{field}": one for field, one in held.items()}
    return {**row, **inner} if inner else row


def _differences(row: Mapping[str, Any], pair: PreferencePair, numbers: Numbers) -> Iterator[float]:
    """Yield by how much the number of the chosen answer is better."""
    first, second = number_of(row[numbers.first]), number_of(row[numbers.second])
    if first is None or second is None:
        return
    better = second - first if numbers.lower else first - second
    if not numbers.answers:
        yield better
    for sides in numbers.answers:
        texts = [_text(row[side]) for side in sides]
        if texts == [_text(pair.chosen), _text(pair.rejected)]:
            yield better
        elif texts == [_text(pair.rejected), _text(pair.chosen)]:
            yield -better


def _text(side: Any) -> str | None:
    """Return what an answer ends with, without blanks around it."""
    if isinstance(side, list) and side and isinstance(side[-1], Mapping):
        side = side[-1].get("content")
    return side.strip() if isinstance(side, str) else None


@lru_cache(maxsize=256)
def _numbers(names: tuple[str, ...]) -> tuple[Numbers, ...]:
    """Find the numbers of two answers by the names of columns. Rows of a file have the same, so this is asked again."""
    there = {_plain(name): name for name in map(str, names)}
    found: dict[str, Numbers] = {}
    for name in filter(_about_all, map(str, names)):
        lower = not RANKS.isdisjoint(_words(name))
        for one, other in OPPOSITES:
            second = there.get(_turned(name, one, other))
            if second is not None:
                found.setdefault(name, Numbers(name, second, lower))
        for one, other in PLACES:
            second = there.get(_turned(name, one, other))
            if second is not None and name not in found:
                pairs = ((side, there.get(_turned(side, one, other))) for side in there.values() if side != name)
                answers = tuple((side, twin) for side, twin in pairs if twin is not None)
                found |= {name: Numbers(name, second, lower, answers)} if answers else {}
    return tuple(found.values())


def _turned(name: str, one: str, other: str) -> str:
    """Return the plain form of a name with the other word in place of the one; "" if it does not have that word."""
    turned, count = re.subn(rf"(?<![a-z0-9]){one}(?![a-z0-9])", other, _plain(name))
    return turned if count else ""


def _plain(name: str) -> str:
    return "_".join(_words(name))


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORDS.findall(name)]


@lru_cache(maxsize=4096)
def _about_all(name: str) -> bool:
    """Tell whether a name is that of a number for a whole answer."""
    words = set(_words(name))
    sides = {word for pair in (*OPPOSITES, *PLACES) for side in pair for word in _words(side)}
    return not words.isdisjoint(NUMBERS) and words <= WHOLE | sides
