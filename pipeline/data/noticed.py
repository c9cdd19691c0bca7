"""A row and its pair -> the names of what is odd about them. Such rows are used; the names are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from dpo.text.calls import VALUES, too_deep
from dpo.text.cell import OPENS
from dpo.text.pairs import PreferencePair
from pipeline.data.scores import said_by_scores

NULLS, JSON_TEXT = "nulls in calls", "JSON text in calls"
GLUED, LISTS = "words glued", "looks like JSON"
PAST_TEMPLATE = "strings past the template"

WRITTEN = re.compile(r"""\s*(\[\s*["'{]|\{\s*["'](text|content|value|message|messages|role|from)["']\s*:)""")
SCRIPTS_WITHOUT_BLANKS = 0x2E80  # Chinese, Japanese and Korean begin here


def noticed_in(row: Any, pair: PreferencePair) -> Iterator[str]:
    """Yield the name of everything odd about a pair and the row that it was read from."""
    if isinstance(row, Mapping):
        said = said_by_scores(row, pair)
        yield from () if said is None else (said,)
        called = [*_calls(row)]
        if (called or "tools" in row) and not too_deep([called, row.get("tools")]):
            yield from (NULLS,) if _has_null([called, row.get("tools") or []]) else ()
            yield from (JSON_TEXT,) if any(map(_has_text, called)) else ()
    yield from (LISTS,) if all(map(_is_written, (pair.chosen, pair.rejected))) else ()
    if not pair.chat:
        prompt, chosen, rejected = str(pair.prompt), str(pair.chosen), str(pair.rejected)
        yield from (GLUED,) if _glued(prompt, chosen) and _glued(prompt, rejected) else ()


def _is_written(side: Any) -> bool:
    """Tell whether an answer looks like a list, or like an object with a text, as JSON or Python writes it."""
    text = side if isinstance(side, str) else side[-1]["content"]
    return text[:1] in OPENS and WRITTEN.match(text) is not None


def _calls(row: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the value `tool_calls` of each message of the row."""
    for messages in row.values():
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, Mapping) and message.get("tool_calls"):
                yield message["tool_calls"]


def _has_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(name not in VALUES and (inner is None or _has_null(inner)) for name, inner in value.items())
    return isinstance(value, list) and any(map(_has_null, value))


def _has_text(calls: Any) -> bool:
    """Tell whether calls, or their arguments, are JSON text."""
    if not isinstance(calls, list):
        return isinstance(calls, str)
    for call in calls:
        holder = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(holder, Mapping) or isinstance(holder.get("arguments"), str):
            return True
    return False


def _glued(prompt: str, answer: str) -> bool:
    """Tell whether no blank parts the last word of a prompt, or the mark behind it, from the answer's first word."""
    last, first = prompt[-1:], answer[:1]
    if any(ord(letter) >= SCRIPTS_WITHOUT_BLANKS for letter in chain(last, first)):
        return False
    return (last.isalnum() and first.isalnum()) or (last in (".", ",", ":", ";", "?", "!", ")") and first.isalpha())
