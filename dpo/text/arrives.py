"""The messages of a row, and the text that a chat template wrote -> the message that did not arrive."""

from __future__ import annotations

import json
import re
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from dpo.text.beside import THOUGHTS
from dpo.text.rejection import Rejection

LOST = "text lost"  # the kind of a rejection
TAGS = re.compile(r"</?think>")
Piece = tuple[str, str]  # what it is, and the text


def lost_from(messages: list[dict[str, Any]], written: str, name: str, history: bool) -> Rejection | None:
    """Find a message whose text, trimmed, does not stand in what the template wrote.

    Args:
        name: of the side, for the message.
        history: thoughts of the assistant are not looked for; templates leave them out of earlier turns on purpose.
    """
    if _plainly_there(messages, written):
        return None
    pieces = [(message, *piece) for message in messages for piece in _texts(message, history)]
    at = 0
    for _, _, text in pieces:  # nearly always they stand there in their order
        found = written.find(text, at)
        if found < 0:
            break
        at = found + len(text)
    else:
        pieces = []
    missing = _first_missing(pieces, written)
    if missing is None:
        called = [(message, *piece) for message in messages for piece in _calls(message)]
        missing = next((piece for piece in called if not any(form in written for form in forms(piece[2]))), None)
    if missing is None:
        return None
    message, what, text = missing
    number = next(number for number, other in enumerate(messages, 1) if other is message)
    said = f"the chat template leaves out {what} of message {number} of {name!r}, whose role is {message['role']!r}"
    return Rejection(f"{said}: {text[:60]!r}", LOST)


def _plainly_there(messages: list[dict[str, Any]], written: str) -> bool:
    """Tell whether messages that are role and content alone stand there in their order, as nearly always."""
    at = 0
    for message in messages:
        text = message["content"].strip()
        if len(message) != 2 or "think>" in text:
            return False
        found = written.find(text, at)
        if found < 0:
            return False
        at = found + len(text)
    return True


def lost_tool(tools: list[Any], written: str) -> Rejection | None:
    """Find a tool whose name does not stand in the prompt."""
    for tool in tools:
        holder = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        name = holder.get("name")
        if isinstance(name, str) and not any(form in written for form in forms(name)):
            return Rejection(f"the chat template leaves out the tool {name!r} of 'tools'", LOST)
    return None


def forms(text: str) -> Iterator[str]:
    """Yield the forms in which templates write a text: as it is, within JSON, within a literal of Python."""
    yield text
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]
    yield repr(text)[1:-1]


def _texts(message: Mapping[str, Any], history: bool) -> Iterator[Piece]:
    content, thinks = message["content"], message["role"] == "assistant"
    thoughts = next((message[name] for name in THOUGHTS if message.get(name)), "")
    if thinks and history and "</think>" in content:
        content = content.rsplit("</think>", 1)[1]
    if thoughts and not (thinks and history):
        yield "the thoughts", thoughts.strip()
    pieces = TAGS.split(content) if thinks and "think>" in content else [content]
    yield from (("the text", piece.strip()) for piece in pieces if piece.strip())


def _calls(message: Mapping[str, Any]) -> Iterator[Piece]:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping):
            holder = call["function"] if isinstance(call.get("function"), Mapping) else call
            yield from (("a call", leaf) for leaf in _leaves([holder.get("name"), holder.get("arguments")]))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def _first_missing(
    pieces: list[tuple[dict[str, Any], str, str]], written: str
) -> tuple[dict[str, Any], str, str] | None:
    """Give every piece a place of its own, the longest first: a short text may also stand within another one."""
    taken: list[tuple[int, int]] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece[2])):
        place = next((p for p in (_free(form, written, taken) for form in forms(piece[2])) if p is not None), None)
        if place is None:
            return piece
        insort(taken, place)
    return None


def _free(text: str, written: str, taken: list[tuple[int, int]]) -> tuple[int, int] | None:
    at = written.find(text)
    while at >= 0:
        end = at + len(text)
        before = bisect_right(taken, (at, end)) - 1
        near = islice(taken, max(0, before), before + 2)
        clash = next((stop for start, stop in near if start < end and at < stop), None)
        if clash is None:
            return at, end
        at = written.find(text, clash)
    return None
