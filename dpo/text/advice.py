"""A row that cannot be read -> a rejection that names what it looks like, and the line that would read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dpo.text.fields import Fields
from dpo.text.layouts import to_be_said
from dpo.text.ranked import TEXTS, line_beside
from dpo.text.rejection import Rejection, kind_of
from dpo.text.shapes import UNREAD
from dpo.text.verdict import WINNER, is_verdict, lines_for

PROMPT = ("prompt", "instruction", "question", "query", "input", "problem", "post", "user", "request", "context")
PROMPT += ("history", "dialogue", "messages", "conversation", "text", "title", "goal", "body")
OPPOSITES = (
    *(("chosen", "rejected"), ("chosen", "reject"), ("preferred", "dispreferred"), ("preferred", "non_preferred")),
    ("preferred", "nonpreferred"),
    *(("preferred", "rejected"), ("better", "worse"), ("good", "bad"), ("accepted", "rejected"), ("accept", "reject")),
    *(("positive", "negative"), ("pos", "neg"), ("winner", "loser"), ("winning", "losing"), ("win", "lose")),
    *(("win", "loss"), ("best", "worst"), ("selected", "unselected"), ("upvoted", "downvoted"), ("yw", "yl")),
    *(("y_w", "y_l"), ("correct", "incorrect")),
)
BESIDE = (("a", "b"), ("0", "1"), ("1", "2"), ("one", "two"), ("left", "right"), ("first", "second"))


def not_read(name: str, fields: Fields) -> Rejection:
    """Reject a row for a column that belongs to its conversation, and that its reading does not use."""
    ours = "tools" if "tools" in name else "system" if "system" in name else None
    reads = f'data.columns = {{ {ours} = "{name}" }} reads it, and ' if ours and ours not in fields else ""
    if name in ("history", "input") and isinstance(fields.peek("prompt"), str) and "instruction" not in fields:
        reads = 'data.columns = { instruction = "prompt" } reads it with the prompt, and '
    return Rejection(
        f"the column {name!r} would be lost: it may change the text, and rows of this form are read without it. "
        f'{reads}data.ignore = ["{name}"] leaves it out knowingly',
        UNREAD,
    )


def no_layout(fields: Fields) -> Rejection:
    """Reject a row of no known layout, with the line that would read it if its names tell."""
    known = to_be_said(fields)
    if known is not None:
        return Rejection(f"the row looks like {known.name}, whose verdict must be said. Write {known.lines}")
    has = ", ".join(fields.names) or "nothing"
    sides = [side for side in ("chosen", "rejected") if side in fields]
    if len(sides) == 2:
        return _no_prompt(fields, has)
    missing = "rejected" if "chosen" in sides else "chosen"
    lines = _lines(fields)
    fix = f". Write {lines}" if lines else ". data.columns names the columns of your file"
    if not lines and not {*fields.row} - {"prompt", "chosen", "rejected"}:
        fix = ""
    null = ": it is null" if missing in fields.names else ""
    return Rejection(f"no {missing!r}{null} (the row has: {has}){'' if null else fix}{_other_kind(fields)}")


def _other_kind(fields: Fields) -> str:
    """Say what a row is that is no preference at all."""
    inner = next((name for name in ("data", "rows", "train") if isinstance(fields.peek(name), list)), None)
    if inner is not None and all(isinstance(one, dict) for one in fields.row[inner]):
        return f". The rows seem to stand in {inner!r}: write that list alone into the file"
    if "label" in fields and fields.first("completion", "messages", "response", "conversations"):
        return ". A label for a single answer is no preference between two"
    if "messages" in fields and len(fields.row) == 1:
        return ". One conversation is no preference between two answers"
    return ""


def _no_prompt(fields: Fields, has: str) -> Rejection:
    prompt = next((name for name, value in fields.row.items() if _is_talk(value) and _may_ask(name)), None)
    if prompt is None:
        prompt = _named(fields, PROMPT, ("chosen", "rejected"))
    if prompt is None:
        prompt = next((name for name, value in fields.row.items() if _is_text(value) and _may_ask(name)), None)
    fix = f'Write data.columns = {{ prompt = "{prompt}" }}' if prompt else "data.columns.prompt may name another column"
    kinds = " and ".join(sorted({kind_of(fields.peek(side)) for side in ("chosen", "rejected")}))
    what = "'prompt' must be a string or a list of messages, not null"
    what = f"'chosen' and 'rejected' must be of one kind, they are {kinds}" if " and " in kinds else what
    return Rejection(f"{what}; the row has: {has}. {fix}")


NOT_ASKED = ("chosen", "rejected", "system", "tools", "id", "source")


def _may_ask(name: str) -> bool:
    """Tell whether a column may hold the prompt; "chosen.1" is a further answer."""
    return name.partition(".")[0] not in NOT_ASKED


def _is_talk(value: Any) -> bool:
    """Tell whether a value is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and ("content" in first or "value" in first)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) > 2


def _named(fields: Fields, names: tuple[str, ...], but: tuple[str, ...]) -> str | None:
    """Return the column of one of some names, or one that holds such a name, or a path into an object."""
    columns = [name for name, value in fields.row.items() if name not in but and isinstance(value, (str, list))]
    inner = [
        f"{name}.{key}"
        for name, value in fields.row.items()
        if isinstance(value, dict) and name not in but
        for key, text in value.items()
        if isinstance(text, (str, list)) and text
    ]
    for wanted in names:
        for name in [*columns, *inner]:
            if name.rpartition(".")[2].lower() == wanted:
                return name
    worded = (name for wanted in names for name in columns if wanted in re.split(r"[_\W]", name.lower()))
    return next(worded, None)


def _lines(fields: Fields) -> str:
    """Return the lines of a configuration that would read the row, as far as its names tell; else nothing."""
    found = _two(fields, OPPOSITES)
    if found is not None:
        chosen, rejected = (_reaching(fields, name) for name in found)
        prompt = _named(fields, PROMPT, found)
        asks = f'prompt = "{prompt}", ' if prompt not in (None, "prompt") else ""
        return f'data.columns = {{ {asks}chosen = "{chosen}", rejected = "{rejected}" }}'
    found = _two(fields, BESIDE, ("model", "score", "id", "rating", "reward"))
    if found is None:
        return _of_list(fields)
    winner = next((n for n, value in fields.row.items() if WINNER.fullmatch(n) and is_verdict(value)), None)
    prompt = _named(fields, PROMPT, found)
    asks = f'prompt = "{prompt}", ' if prompt not in (None, "prompt", "instruction", "question") else ""
    if winner is None:
        return f'data.columns = {{ {asks}response_a = "{found[0]}", response_b = "{found[1]}", winner = ... }}'
    columns = f'{{ {asks}response_a = "{found[0]}", response_b = "{found[1]}", winner = "{winner}" }}'
    value = fields.row[winner]
    verdict = "" if isinstance(value, str) else f". {lines_for(value)}"
    return f"data.columns = {columns}{verdict}"


def _reaching(fields: Fields, name: str) -> str:
    """Return a path to the text of an answer that is an object, such as "good.answer"; other names as they are."""
    value = fields.peek(name)
    text = next((text for text in TEXTS if isinstance(value, Mapping) and isinstance(value.get(text), str)), None)
    return f"{name}.{text}" if text is not None and "role" not in value else name


def _of_list(fields: Fields) -> str:
    """Return the line that reads the only list of several answers that a row has; else nothing."""
    lists = {n: v for n, v in fields.row.items() if isinstance(v, list) and len(v) > 1 and not _is_talk(v)}
    lists = {name: value for name, value in lists.items() if not isinstance(value[0], (int, float))}
    if len(lists) != 1:
        return ""
    ((key, answers),) = lists.items()
    prompt = _named(fields, PROMPT, (key,))
    asks = f'prompt = "{prompt}", ' if prompt not in (None, "prompt", "instruction", "question") else ""
    return line_beside(fields, key, answers, asks)


def _two(
    fields: Fields, words: tuple[tuple[str, str], ...], but: tuple[str, ...] = ("score", "model", "rating", "reward")
) -> tuple[str, str] | None:
    """Return two columns, or fields of an object, whose names differ only by two opposite words."""
    paths = [name for name, value in fields.row.items() if isinstance(value, (str, list, dict))]
    paths += [f"{name}.{key}" for name, value in fields.row.items() if isinstance(value, dict) for key in value]
    there = {path.lower(): path for path in paths}
    for one, other in words:
        for name in paths:
            if any(word in name.lower() for word in but):
                continue
            pattern = rf"(?<![a-z0-9]){re.escape(one)}(?![a-z0-9])|(?<=[a-z]){re.escape(one)}$"
            turned = re.sub(pattern, other, name.lower())
            if turned != name.lower() and turned in there:
                return name, there[turned]
    return None
