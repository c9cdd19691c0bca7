"""A row as people write it -> one PreferencePair, or the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo.shapes import paired, ranked, unified

Message = dict[str, str]  # {"role": ..., "content": ...}
Side = str | list[Message]


class PreferencePair(NamedTuple):
    """A prompt with the completion that was preferred and the one that was not.

    All three are strings, or all three are lists of messages (`chat` tells which).
    """

    prompt: Side
    chosen: Side
    rejected: Side

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)


class Rejection(NamedTuple):
    """Why a row is not used. Where it stood is added by whoever read it."""

    reason: str


class TokenizedPair(NamedTuple):
    """Token ids of one pair. A mask is true where the completion's token is scored.

    `apart` tells that prompt and completion had to be encoded apart (see `tokenize.encode_completion`).
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_mask: list[bool]
    rejected_mask: list[bool]
    apart: bool
    truncated: bool


class TokenSequence(NamedTuple):
    """One prompt with one completion; `mask` is true where a completion token is scored."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    mask: Sequence[bool]


def read_pair(row: Any) -> PreferencePair | Rejection:
    """Read one row with `prompt`, `chosen`, `rejected` as strings or as message lists, or of a shape of `dpo.shapes`.

    Message lists may leave `prompt` out, or repeat it: then it is what both sides begin with.
    """
    if not isinstance(row, Mapping):
        return Rejection(f"a row must be an object with prompt, chosen and rejected, not {_kind(row)}")
    row = unified(row)
    if isinstance(row, str):
        return Rejection(row)
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            return Rejection(f"no {key!r} (the row has: {', '.join(map(str, row)) or 'nothing'})")
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        kinds = f"{_kind(row['chosen'])} and {_kind(row['rejected'])}"
        return Rejection(f"'chosen' and 'rejected' must be of one kind, they are {kinds}")
    if isinstance(row["chosen"], str):
        return _read_strings(row)
    return _read_messages(row)


def read_pairs(row: Any, pairing: str = "best_worst", margin: float = 0.0) -> list[PreferencePair | Rejection]:
    """All pairs of one row, or why there is none: several where it holds a list of scored answers.

    Args:
        pairing: which of such answers make a pair: "best_worst", or "all" of which one is better.
        margin: by how much more one must be scored than the other.
    """
    answers = ranked(row) if isinstance(row, Mapping) else None
    if answers is None:
        return [read_pair(row)]
    if isinstance(answers, str):
        return [Rejection(answers)]
    prompt = next((row[name] for name in ("prompt", "instruction", "question") if row.get(name) is not None), None)
    found = [
        read_pair({"prompt": prompt, "chosen": better, "rejected": worse})
        for better, worse in paired(answers, pairing, margin)
    ]
    return found or [Rejection(f"no two of its {len(answers)} answers differ in score by more than {margin:g}")]


def _read_strings(row: Mapping[str, Any]) -> PreferencePair | Rejection:
    prompt = row.get("prompt")
    if isinstance(prompt, list):  # a conversation answered with plain texts
        answers = {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
        return _read_messages({**row, **answers})
    if not isinstance(prompt, str):
        return Rejection(f"'prompt' must be a string or a list of messages, not {_kind(prompt)}")
    pair = PreferencePair(prompt, row["chosen"], row["rejected"])
    for name, text in zip(pair._fields, (prompt, row["chosen"], row["rejected"]), strict=True):
        if not text.strip():
            return Rejection(f"{name!r} is empty")
    return pair if pair.chosen != pair.rejected else Rejection("chosen and rejected are the same")


def _read_messages(row: Mapping[str, Any]) -> PreferencePair | Rejection:
    sides: dict[str, list[Message]] = {}
    for key in ("prompt", "chosen", "rejected"):
        value = row.get(key)
        if key == "prompt" and value is None:
            value = []
        if key == "prompt" and isinstance(value, str):
            value = [{"role": "user", "content": value}]
        read = _messages(key, value)
        if isinstance(read, Rejection):
            return read
        sides[key] = read
    prompt, chosen, rejected = sides["prompt"], sides["chosen"], sides["rejected"]
    shared = _shared_length(chosen, rejected)
    if (shared and chosen[:shared][-len(prompt) :] == prompt) or not prompt:
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            return Rejection("no 'prompt', and chosen and rejected do not begin with the same message")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or not side[-1]["content"].strip():
            return Rejection(f"{name!r} has no answer after the prompt")
        if any(message["role"] != "assistant" for message in side):
            roles = ", ".join(message["role"] for message in side)
            return Rejection(f"{name!r} must answer with assistant messages only, it has: {roles}")
    if chosen == rejected:
        return Rejection("chosen and rejected are the same")
    return PreferencePair(prompt, chosen, rejected)


def _messages(key: str, value: Any) -> list[Message] | Rejection:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return Rejection(f"{key!r} must be a string or a list of messages, not {_kind(value)}")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            return Rejection(f"message {number} of {key!r} must be an object, not {_kind(message)}")
        read = _message(message)
        if isinstance(read, str):
            return Rejection(f"message {number} of {key!r} {read}")
        messages.append(read)
    return messages


ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "bing": "assistant", "chatgpt": "assistant"}


def _message(message: Mapping[str, Any]) -> Message | str:
    """{"role", "content"}, or {"from", "value"} as in ShareGPT; content may be a list of parts. Or what is wrong."""
    role_key, content_key = ("from", "value") if "role" not in message and "from" in message else ("role", "content")
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str):
        return f"has no {role_key!r} string"
    if isinstance(content, list):
        texts = [_text_of(part) for part in content]
        content = "".join(text for text in texts if text is not None)
        if None in texts:
            return f"has a part that is not text: {texts.index(None) + 1} of {len(texts)}"
    if not isinstance(content, str):
        return f"has no {content_key!r} string"
    return {"role": ROLES.get(role, role) if role_key == "from" else role, "content": content}


def _text_of(part: Any) -> str | None:
    """One part of a content: a string, or {"type": "text", "text" or "value": ...}."""
    if isinstance(part, Mapping):
        part = part.get("text", part.get("value")) if part.get("type", "text") == "text" else None
    return part if isinstance(part, str) else None


def _shared_length(chosen: list[Message], rejected: list[Message]) -> int:
    length = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours != theirs:
            break
        length += 1
    return length


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
