"""A row with a list of answers, each with a score or a rank -> (better, worse) pairs of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from reprlib import repr as short  # a wrong value may be large or deeply nested
from typing import Any, NamedTuple

from dpo.text.cell import messages_in
from dpo.text.fields import ABOUT, Fields
from dpo.text.rejection import Rejection
from dpo.text.verdict import Verdict, number_of, said_by, side_named

LISTS = ("completions", "responses", "answers", "generations")
BESIDE = ("scores", "ratings", "rewards", "ranks")  # lists of numbers; of ranks 1 is the best
SCORES = ("score", "overall_score", "pm_score", "rating", "reward", "rank", "ranking")
RANKS = ("rank", "ranking", "ranks")  # the lower is better
TEXTS = ("response", "text", "content", "message", "messages", "answer", "completion", "generation", "output")
TEXT_FIELDS = frozenset(TEXTS) | {"role"}  # an answer may be one message by itself
# Fields of an answer that are known and not read.
LEFT = frozenset(
    ["critique", "annotations", "principle", "custom_system_prompt", "rationale", "feedback", "finish_reason"]
)


class Answer(NamedTuple):
    """A text or messages of a row with several.

    Attributes:
        by: the name of the number that decides.
        others: the further numbers that the row has for its answers, by their names; the higher is better.
    """

    text: Any
    by: str
    others: dict[str, float]


Scored = list[tuple[Answer, float]]


def list_of(fields: Fields) -> str | None:
    """Return the name of the column with a list of answers, or None."""
    return next((name for name in LISTS if isinstance(fields.peek(name), list)), None)


def scored(fields: Fields, key: str, verdict: Verdict) -> Scored | Rejection:
    """Read the scored answers of a row: the higher number is better.

    The answers are objects with a score or a rank each, or texts with a list of numbers beside them; or `winner` is the
    index of the best, if `verdict` says so. Further numbers of a row must not contradict those that decide.
    """
    answers = fields.take(key)
    beside = next((name for name in BESIDE if isinstance(fields.peek(name), list)), None)
    inside = any(isinstance(answer, Mapping) and not answer.keys().isdisjoint(SCORES) for answer in answers)
    if beside is None and not inside and "winner" in fields:
        return _best_named(fields, key, answers, verdict)
    used = beside or _deciding(key, answers)
    if isinstance(used, Rejection):
        return used
    values = fields.take(beside) if beside else [a.get(used) if isinstance(a, Mapping) else None for a in answers]
    if len(values) != len(answers):
        return Rejection(f"{key!r} has {len(answers)} answers and {beside!r} {len(values)} values")
    found = [(_text(answer), (value, used in RANKS)) for answer, value in zip(answers, values, strict=True)]
    return _checked(key, found, used if beside else f"{key}.{used}", _others(fields, key, used, verdict))


def contradiction(better: Answer, worse: Answer) -> Rejection | None:
    """Find a number of the row that says the opposite of the preference between two of its answers."""
    for name, value in better.others.items():
        if value < worse.others[name]:
            columns = [one for one in (better.by, name) if "." not in one]
            line = f'data.ignore = ["{columns[-1]}"] leaves one out' if columns else "keep one of them"
            return Rejection(f"{better.by!r} and {name!r} say the opposite of each other about two answers; {line}")
    return None


def _others(fields: Fields, key: str, used: str, verdict: Verdict) -> dict[str, list[float]]:
    """Return the numbers that a row has for all of its answers beside those that decide. The higher is better."""
    answers, found = fields.peek(key), {}
    for name in BESIDE:
        values = fields.peek(name)
        if name != used and isinstance(values, list) and len(values) == len(answers):
            found[name] = [(number_of(value), name in RANKS) for value in values]
    if all(isinstance(answer, Mapping) for answer in answers):
        for name in SCORES:
            if name != used:
                found[f"{key}.{name}"] = [(number_of(answer.get(name)), name in RANKS) for answer in answers]
    numbers = {name: [None if n is None else -n if low else n for n, low in all_] for name, all_ in found.items()}
    known = {name: [n for n in each if n is not None] for name, each in numbers.items()}
    best = _best_of(fields.peek("winner"), len(answers), verdict) if "winner" in fields else None
    if isinstance(best, int):
        fields.take("winner")
        known["winner"] = [float(number == best) for number in range(len(answers))]
    return {name: each for name, each in known.items() if answers and len(each) == len(answers)}


def _deciding(key: str, answers: list[Any]) -> str | Rejection:
    """Return the name of the number in each answer that decides: the first that all have which have any; or ""."""
    told = [[n for n in SCORES if isinstance(answer, Mapping) and answer.get(n) is not None] for answer in answers]
    for number, names in enumerate(told, 1):
        if len({name in RANKS for name in names}) > 1:
            return Rejection(
                f"answer {number} of {key!r} has both a score and a rank ({' and '.join(names)}); which decides is "
                "unknown: keep one of them"
            )
    given = [name for name in SCORES if any(name in names for names in told)]
    if len({name in RANKS for name in given}) > 1:
        return Rejection(f"of the answers of {key!r} some have a score and some a rank")
    shared = next((name for name in given if all(name in names for names in told if names)), None)
    if shared is None and given:
        return Rejection(f"the answers of {key!r} have scores of different names: {' and '.join(given)}; keep one")
    return shared or ""


def _checked(
    key: str, found: list[tuple[Any, tuple[Any, bool]]], by: str, others: Mapping[str, list[float]]
) -> Scored | Rejection:
    scored = []
    for number, (answer, (score, low)) in enumerate(found, 1):
        if isinstance(answer, Rejection):
            return answer._replace(reason=f"answer {number} of {key!r} {answer.reason}")
        value = number_of(score)
        if value is None:
            names = ", ".join(SCORES)
            return Rejection(
                f"answer {number} of {key!r} has no score that is a number, but {short(score)}. It is looked for in "
                f"{names} of each answer, or in a list beside them: data.columns.scores names it"
            )
        more = {name: values[number - 1] for name, values in others.items()}
        scored.append((Answer(answer, by, more), -value if low else value))
    return scored


def _best_named(fields: Fields, key: str, answers: list[Any], verdict: Verdict) -> Scored | Rejection:
    """Read the index of the best answer: it is better than each of the others."""
    winner = fields.take("winner")
    if verdict is None:
        return Rejection(f"'winner' is {short(winner)} beside {len(answers)} answers in {key!r}")
    best = _best_of(winner, len(answers), verdict)
    if isinstance(best, Rejection):
        return best
    texts = [_text(answer) for answer in answers]
    return _checked(key, [(text, (int(number == best), False)) for number, text in enumerate(texts)], "winner", {})


def _best_of(winner: Any, count: int, verdict: Verdict) -> int | Rejection:
    """Read which of `count` answers a winner names."""
    if verdict == "index":
        best = number_of(winner)
        none = Rejection(f"'winner' is {short(winner)}, no index of {count} answers: 0 to {count - 1}")
        return int(best) if best is not None and best in range(count) else none
    said = said_by(winner, verdict) if verdict is not None else side_named(winner)
    if said is None or isinstance(said, Rejection) or count != 2:
        return said if isinstance(said, Rejection) else Rejection(f"data.verdict = {verdict!r} is for two answers")
    if said == "tie":
        return Rejection(f"a tie ({short(winner)}) expresses no preference", "tie")
    return "ab".index(said)


def _text(answer: Any) -> Any:
    """Return the text or the messages of an answer; None if it has none under a known name."""
    if isinstance(answer, str):
        found = messages_in(answer)
        return answer if found is None else found
    if not isinstance(answer, Mapping):
        return None
    told = [name for name in TEXTS if answer.get(name) is not None]
    if len(told) > 1:
        return Rejection(f"has both {told[0]!r} and {told[1]!r}; which is the answer is unknown")
    if not told:
        return Rejection(
            f"has no text under a known name ({', '.join(TEXTS)}), but {', '.join(map(str, answer)) or 'nothing'}"
        )
    text = answer[told[0]]
    return _text(text) if isinstance(text, str) else text


def fields_left(key: str, answers: Any) -> Iterator[str]:
    """Yield the fields of answers that are not read, such as "completions[].prefix"."""
    for answer in answers if isinstance(answers, list) else ():
        if isinstance(answer, Mapping):
            for name, value in answer.items():
                known = name in TEXT_FIELDS or name in SCORES or name in LEFT or ABOUT.fullmatch(str(name).lower())
                if not known and value not in (None, "", [], {}):
                    yield f"{key}[].{name}"


def paired(answers: Sequence[tuple[Any, float]], pairing: str, margin: float) -> Iterator[tuple[Any, Any]]:
    """Yield (better, worse) answers whose scores differ by more than `margin`: best and worst, or all such pairs."""
    order = sorted(answers, key=lambda answer: -answer[1])  # equal scores stay in the order of the row
    candidates = combinations([*order[:1], *order[-1:]] if pairing == "best_worst" else order, 2)
    return ((better, worse) for (better, high), (worse, low) in candidates if high - low > margin)
