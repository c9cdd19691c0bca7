"""A row and its pair -> the names of what is odd about them. Such rows are used; the names are counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from dpo.text.calls import VALUES, too_deep
from dpo.text.pairs import PreferencePair

CONTRADICT, EQUAL = "scores contradict", "scores equal"
NULLS, JSON_TEXT = "nulls in calls", "JSON text in calls"
GLUED, LISTS = "words glued", "looks like JSON"
PAST_TEMPLATE = "strings past the template"

# Names of the two sides' scores; {} stands for the side.
SCORES = ("score_{}", "{}_score", "{}-score", "rating_{}", "{}_rating", "{}-rating", "reward_{}", "{}_reward")
SCORED = [(name.format("chosen"), name.format("rejected")) for name in SCORES]
SCRIPTS_WITHOUT_BLANKS = 0x2E80  # Chinese, Japanese and Korean begin here


def noticed_in(row: Any, pair: PreferencePair) -> Iterator[str]:
    """Yield the name of everything odd about a pair and the row that it was read from."""
    if isinstance(row, Mapping):
        yield from _scores(row)
        called = [*_calls(row)]
        if (called or "tools" in row) and not too_deep([called, row.get("tools")]):
            yield from (NULLS,) if _has_null([called, row.get("tools") or []]) else ()
            yield from (JSON_TEXT,) if any(map(_has_text, called)) else ()
    if not pair.chat:
        prompt, chosen, rejected = str(pair.prompt), str(pair.chosen), str(pair.rejected)
        yield from (GLUED,) if _glued(prompt, chosen) and _glued(prompt, rejected) else ()
        yield from (LISTS,) if all(side.lstrip().startswith(('["', '[{"')) for side in (chosen, rejected)) else ()


def _scores(row: Mapping[str, Any]) -> Iterator[str]:
    for chosen, rejected in SCORED:
        if chosen in row:
            high, low = row[chosen], row.get(rejected)
            if isinstance(high, int | float) and isinstance(low, int | float):
                yield from (EQUAL,) if high == low else (CONTRADICT,) if high < low else ()
                return
    if "chosen" in row and row.get("status") == "tie":
        yield EQUAL


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
