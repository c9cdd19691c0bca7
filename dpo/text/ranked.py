"""A row with a list of answers, each with a score or a rank -> (better, worse) pairs of answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from reprlib import repr as short  # a wrong value may be large or deeply nested
from typing import Any

from dpo.text.cell import messages_in
from dpo.text.fields import ABOUT, Fields
from dpo.text.rejection import Rejection
from dpo.text.verdict import Verdict, lines_for, number_of, said_by

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

Scored = list[tuple[Any, float]]


def list_of(fields: Fields) -> str | None:
    """Return the name of the column with a list of answers, or None."""
    return next((name for name in LISTS if isinstance(fields.peek(name), list)), None)


def scored(fields: Fields, key: str, verdict: Verdict) -> Scored | Rejection:
    """Read the scored answers of a row: the higher number is better.

    The answers are objects with a score or a rank each, or texts with a list of numbers beside them; or `winner` is the
    index of the best, if `verdict` says so.
    """
    answers = fields.take(key)
    beside = next((name for name in BESIDE if isinstance(fields.peek(name), list)), None)
    inside = any(isinstance(answer, Mapping) and not answer.keys().isdisjoint(SCORES) for answer in answers)
    if beside is None and not inside and "winner" in fields:
        return _best_named(fields, key, answers, verdict)
    if beside is None and not inside and len(answers) > 1:
        line = line_beside(fields, key, answers)
        if line:
            return Rejection(f"the answers of {key!r} have no scores under a known name. Write {line}")
    if beside is None:
        return _scores_inside(key, answers)
    values = fields.take(beside)
    if len(values) != len(answers):
        return Rejection(f"{key!r} has {len(answers)} answers and {beside!r} {len(values)} values")
    texts = [_text(answer) for answer in answers]
    return _checked(key, list(zip(texts, [(value, beside in RANKS) for value in values], strict=True)))


BEST = re.compile(r"(?i)(best|winner|choice|chosen|preferred|selected|label)\w*")


def line_beside(fields: Fields, key: str, answers: list[Any], asks: str = "") -> str:
    """Return the line of a configuration that reads a list of answers of a row; nothing if its columns do not tell.

    Args:
        asks: the entry of the prompt in `data.columns`, with a comma behind it.
    """
    given = asks if key in LISTS else f'{asks}completions = "{key}"'
    part = f"{given.rstrip(', ')}, " if given else ""
    if not all(isinstance(answer, (str, Mapping)) for answer in answers):
        return f"the answers in {key!r} as texts, or as objects with a text and a score each"
    objects = [answer for answer in answers if isinstance(answer, Mapping)]
    if objects == answers and all({*one}.intersection(SCORES) and {*one}.intersection(TEXTS) for one in objects):
        return f"data.columns = {{ {given} }}" if given else ""
    for name, value in fields.row.items():
        if isinstance(value, list) and len(value) == len(answers) and None not in map(number_of, value):
            ours = "ranks" if "rank" in name.lower() else "scores"
            return f'data.columns = {{ {part}{ours} = "{name}" }}'
        if BEST.fullmatch(name) and number_of(value) in range(len(answers)):
            return f'data.columns = {{ {part}winner = "{name}" }} and data.verdict = "index" if it counts from 0'
    line = f'data.columns = {{ {asks}chosen = "{key}.0", rejected = "{key}.{len(answers) - 1}" }}'
    return f"{line} if the first of its answers is the best and the last the worst" if not objects else ""


def _scores_inside(key: str, answers: list[Any]) -> Scored | Rejection:
    found = []
    for number, answer in enumerate(answers, 1):
        names = [name for name in SCORES if isinstance(answer, Mapping) and answer.get(name) is not None]
        kinds = {name in RANKS for name in names}
        if len(kinds) > 1:
            return Rejection(
                f"answer {number} of {key!r} has both a score and a rank ({' and '.join(names)}); which decides is "
                "unknown: keep one of them"
            )
        found.append((_text(answer), (answer[names[0]], True in kinds) if names else (None, False)))
    if len({low for _, (value, low) in found if value is not None}) > 1:
        return Rejection(f"of the answers of {key!r} some have a score and some a rank")
    return _checked(key, found)


def _checked(key: str, found: list[tuple[Any, tuple[Any, bool]]]) -> Scored | Rejection:
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
        scored.append((answer, -value if low else value))
    return scored


def _best_named(fields: Fields, key: str, answers: list[Any], verdict: Verdict) -> Scored | Rejection:
    """Read the index of the best answer: it is better than each of the others."""
    winner = fields.take("winner")
    if verdict is None:
        return Rejection(f"'winner' is {short(winner)} beside {len(answers)} answers in {key!r}. {lines_for(winner)}")
    best = number_of(winner) if verdict == "index" else None
    if verdict != "index":
        said = said_by(winner, verdict)
        if isinstance(said, Rejection) or len(answers) != 2:
            return said if isinstance(said, Rejection) else Rejection(f"data.verdict = {verdict!r} is for two answers")
        if said == "tie":
            return Rejection(f"a tie ({short(winner)}) expresses no preference", "tie")
        best = "ab".index(said)
    if best not in range(len(answers)):
        return Rejection(f"'winner' is {short(winner)}, no index of {len(answers)} answers: 0 to {len(answers) - 1}")
    texts = [_text(answer) for answer in answers]
    return _checked(key, [(text, (int(number == best), False)) for number, text in enumerate(texts)])


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


def paired(answers: Scored, pairing: str, margin: float) -> Iterator[tuple[Any, Any]]:
    """Yield (better, worse) answers whose scores differ by more than `margin`: best and worst, or all such pairs."""
    order = sorted(answers, key=lambda answer: -answer[1])  # equal scores stay in the order of the row
    candidates = combinations([*order[:1], *order[-1:]] if pairing == "best_worst" else order, 2)
    return ((better, worse) for (better, high), (worse, low) in candidates if high - low > margin)
