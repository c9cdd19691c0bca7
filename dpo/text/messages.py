"""One side of a row -> messages with the roles and fields that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from dpo.text.beside import THOUGHTS, thoughts_of
from dpo.text.calls import normal_calls, too_deep
from dpo.text.rejection import Rejection, kind_of

Message = dict[str, Any]  # {"role": ..., "content": ...}, and the fields of tool calls that templates read

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")  # those that chat templates know
# Other names of speakers, in small letters -> roles: those of ShareGPT, Cohere, OASST and Gemini.
SAYS = {"human": "user", "gpt": "assistant", "observation": "tool", "bing": "assistant", "chatgpt": "assistant"}
SAYS |= {
    "chatbot": "assistant",
    "prompter": "user",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "tool_response": "tool",
}
SPEAKER, SAID = ("role", "from"), ("content", "value", "text", "message", "parts")
CALLS = ("tool_calls", "tool_call_id", "name")  # fields that a message may have
WEIGHTS = ("weight", "loss_weight", "train", "loss_mask")  # 0 or false: this turn is not scored
NOT_TEXT = ("images", "image", "videos", "video", "audios", "audio")  # fields of messages, and columns, that hold media
READ = frozenset((*SPEAKER, *SAID, *CALLS, *THOUGHTS, *WEIGHTS, "function_call"))


def read_messages(key: str, value: Any) -> list[Message] | Rejection:
    """Read a list of messages, or a single one. A message of the assistant that is not scored has `scored`: False."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return Rejection(f"{key!r} must be a string or a list of messages, not {kind_of(value)}")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            return Rejection(f"message {number} of {key!r} must be an object, not {kind_of(message)}")
        read = _message(message)
        if isinstance(read, Rejection):
            return read._replace(reason=f"message {number} of {key!r} {read.reason}")
        if any("\0" in one["content"] for one in read):
            return nul(key)
        messages += read
    return messages


def nul(name: str) -> Rejection:
    return Rejection(f"{name!r} contains a NUL character", "broken text")


def says(message: Message) -> bool:
    """Tell whether a message has any content."""
    return bool(message["content"].strip() or any(message.get(name) for name in ("tool_calls", *THOUGHTS)))


def _message(message: Mapping[str, Any]) -> list[Message] | Rejection:
    """Read {"role", "content"}, {"from", "value"} as in ShareGPT, or a mixture. The content may be a list of parts."""
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and isinstance(content, str) and isinstance(role, str) and role in ROLES:  # nearly always
        return [{"role": role, "content": content}]
    role_key = "from" if "role" not in message and "from" in message else "role"
    told = [name for name in SAID if message.get(name) is not None]
    content_key = "value" if role_key == "from" else "content"
    if len(told) > 1:
        return Rejection(f"has both {told[0]!r} and {told[1]!r}: which of them is said is unknown")
    role, content = message.get(role_key), message[told[0]] if told else None
    if not isinstance(role, str):
        return Rejection(f"has no {role_key!r} string")
    if role in ("function_call", "tool_call"):
        return _call_as_text(content)
    named, role = role, SAYS.get(role.strip().lower(), role.strip().lower())
    if role not in ROLES:
        return Rejection(f"has the role {short(named)}, which is none of {', '.join((*ROLES, *SAYS))}", "roles")
    media = next((name for name in NOT_TEXT if message.get(name)), None)
    if media is not None:
        return Rejection(f"has {media!r}; ray-align trains on text alone", "images")
    fields = _fields(message)
    if isinstance(fields, Rejection):
        return fields
    scored = _scored(message)
    if isinstance(scored, Rejection):
        return scored
    unscored = {} if scored or role != "assistant" else {"scored": False}
    if isinstance(content, list):
        return _of_parts(role, content, fields | unscored)
    if content is None and not fields.keys().isdisjoint(("tool_calls", *THOUGHTS)):
        content = ""
    if not isinstance(content, str):
        return Rejection(f"has no {content_key!r} string")
    return [{"role": role, "content": content, **fields, **unscored}]


def _fields(message: Mapping[str, Any]) -> dict[str, Any] | Rejection:
    """Read what stands beside the content of a message: calls in their one form, and thoughts."""
    fields = {name: message[name] for name in CALLS if message.get(name)}
    fields |= _old_call(message.get("function_call"))
    if too_deep(list(fields.values())):
        return Rejection(f"has {' and '.join(map(repr, fields))} nested too deeply")
    if "tool_calls" in fields:
        if isinstance(fields["tool_calls"], Mapping):
            return Rejection("has 'tool_calls' that are an object and no list of calls")
        fields["tool_calls"] = normal_calls(fields["tool_calls"])
        if not fields["tool_calls"]:
            del fields["tool_calls"]
    thoughts = thoughts_of(message)
    return thoughts if isinstance(thoughts, Rejection) else {**fields, **thoughts}


def _old_call(call: Any) -> dict[str, Any]:
    """Return the field `tool_calls` of a single call as OpenAI wrote it before there were several."""
    return {"tool_calls": [{"type": "function", "function": dict(call)}]} if isinstance(call, Mapping) and call else {}


def _scored(message: Mapping[str, Any]) -> bool | Rejection:
    """Read whether a turn is scored: `weight` and its like may be 0, 1, false or true."""
    given = [(name, message[name]) for name in WEIGHTS if message.get(name) is not None]
    for name, value in given:
        if value not in (0, 1):
            return Rejection(f"has {name} = {short(value)}; a turn is scored (1) or not (0)")
    if len({bool(value) for _, value in given}) > 1:
        return Rejection(f"is scored by {given[0][0]} and not by {given[1][0]}, or the other way round")
    return bool(given[0][1]) if given else True


def _call_as_text(content: Any) -> list[Message] | Rejection:
    """Read the turn `function_call` of LLaMA-Factory, whose text is the call, or a list of calls, as JSON."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return Rejection("is a function call, but is no JSON object with the name of a function")
    if too_deep(calls):
        return Rejection("has 'function_call' nested too deeply")
    made = [{"type": "function", "function": {**call}} for call in calls if isinstance(call, Mapping)]
    return [{"role": "assistant", "content": "", "tool_calls": normal_calls(made)}]


# Content in parts


def _of_parts(role: str, parts: list[Any], fields: dict[str, Any]) -> list[Message] | Rejection:
    """Read a content in parts: texts, and Anthropic's calls, results and thoughts.

    A result becomes a message of the tool in front of what the same message says.
    """
    texts, thoughts, calls, results = [], [], [], []
    for number, part in enumerate(parts, 1):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = _text_of(part)
        if kind == "thinking" and role == "assistant" and isinstance(part.get("thinking"), str):
            thoughts.append(part["thinking"])
        elif kind == "tool_use" and role == "assistant" and _is_call(part):
            call = {"name": part["name"], "arguments": part["input"]}
            calls.append({**_named_by(part), "type": "function", "function": call})
        elif kind == "tool_result" and role == "user" and (result := _result(part)) is not None:
            results.append(result)
        elif text is not None and _is_thought(part) and role == "assistant":  # as Gemini marks it
            thoughts.append(text)
        elif text is not None:
            texts.append(text)
        else:
            return Rejection(f"has a part that is not text: {number} of {len(parts)}{_named(kind)}")
    if too_deep(calls):
        return Rejection("has 'tool_use' nested too deeply")
    if (thoughts and any(name in fields for name in THOUGHTS)) or (calls and "tool_calls" in fields):
        return Rejection("has calls or thoughts both in its parts and beside them")
    fields = fields | ({THOUGHTS[0]: "\n".join(thoughts)} if thoughts else {})
    fields |= {"tool_calls": normal_calls(calls)} if calls else {}
    said = [] if results and not texts else [{"role": role, "content": "".join(texts), **fields}]
    return results + said


def _is_thought(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("thought") is True


def _is_call(part: Any) -> bool:
    return isinstance(part.get("name"), str) and isinstance(part.get("input"), Mapping)


def _named_by(part: Any) -> dict[str, str]:
    return {"id": part["id"]} if isinstance(part.get("id"), str) else {}


def _named(kind: Any) -> str:
    if kind in ("image", "image_url", "input_image", "video", "audio", "input_audio"):
        return f" (its type is {kind!r}; ray-align trains on text alone)"
    return "" if kind == "text" else f" (its type is {short(kind)})"


def _result(part: Any) -> Message | None:
    """Return what a tool gave back as a message of the tool; None if it is not text, or of no call."""
    content = part.get("content")
    parts = content if isinstance(content, list) else [content or ""]
    texts = [_text_of(one) for one in parts]
    called = part.get("tool_use_id")
    if not texts or None in texts or not isinstance(called, str):
        return None
    return {"role": "tool", "content": "".join(text for text in texts if text is not None), "tool_call_id": called}


TEXT_PARTS = ("text", "input_text", "output_text")  # the last two are those of OpenAI's responses


def _text_of(part: Any) -> str | None:
    """Return the text of one part of a content: a string, or {"type": "text", "text" or "value": ...}; else None."""
    if isinstance(part, Mapping):
        part = part.get("text", part.get("value")) if part.get("type", "text") in TEXT_PARTS else None
    return part if isinstance(part, str) else None
