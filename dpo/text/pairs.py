"""A row of preference data -> a PreferencePair, or the reason for its rejection."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from reprlib import repr as short
from typing import Any, NamedTuple

from dpo.text.beside import template_options, thoughts_of
from dpo.text.calls import normal_calls, normal_tools, too_deep
from dpo.text.rejection import Rejection
from dpo.text.shapes import CARRIED, paired, ranked, unified

Message = dict[str, Any]  # {"role": ..., "content": ...}, and the fields of tool calls that templates read
Side = str | list[Message]


class PreferencePair(NamedTuple):
    """A prompt with a preferred and a rejected completion.

    All three are strings, or all three are lists of messages (then `chat` is true). A completion of several turns also
    has the user's turns; only the assistant's turns are scored. `tools` and `options` are passed to the chat template.
    """

    prompt: Side
    chosen: Side
    rejected: Side
    tools: list[Any] | None = None
    options: dict[str, Any] | None = None  # of this row alone; they go before those of all rows

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)


class TokenizedPair(NamedTuple):
    """Token ids of one pair. A mask is true where the completion's token is scored.

    `apart` is true if prompt and completion had to be encoded apart (see `tokenize.split_completion`). `cut` is the
    number of tokens cut from the longer side.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_mask: list[bool]
    rejected_mask: list[bool]
    apart: bool
    cut: int


def read_pair(row: Any) -> PreferencePair | Rejection:
    """Read one row with `prompt`, `chosen`, `rejected` as strings or as message lists, or in a shape of shapes.py.

    With message lists, `prompt` may be missing, or both sides may repeat it: then the prompt is their common beginning.
    """
    if not isinstance(row, Mapping):
        return Rejection(f"a row must be an object with prompt, chosen and rejected, not {_kind(row)}")
    row = unified(row)
    if isinstance(row, Rejection):
        return row
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            null = ": it is null" if key in row else ""
            return Rejection(f"no {key!r}{null} (the row has: {', '.join(map(str, row)) or 'nothing'})")
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        kinds = f"{_kind(row['chosen'])} and {_kind(row['rejected'])}"
        return Rejection(f"'chosen' and 'rejected' must be of one kind, they are {kinds}")
    pair = _read_strings(row) if isinstance(row["chosen"], str) else _read_messages(row)
    if isinstance(pair, PreferencePair):
        pair = _with_system(pair, row.get("system"))
    options = template_options(row.get("chat_template_kwargs"))
    if isinstance(options, Rejection):
        return options
    if isinstance(pair, PreferencePair) and options:
        pair = pair._replace(options=options)
    return pair if isinstance(pair, Rejection) else _with_tools(pair, row.get("tools"))


def read_pairs(
    row: Any, pairing: str = "best_worst", margin: float = 0.0, most: int = 2048
) -> list[PreferencePair | Rejection]:
    """Read all pairs of one row, or the reason why it has none. A row with a list of scored answers may give several.

    Args:
        pairing: "best_worst" pairs the best answer with the worst, "all" every answer with every lower-scored one.
        margin: the scores of a pair must differ by more than this.
        most: maximum number of pairs per row; a row with more is rejected.
    """
    answers = ranked(row) if isinstance(row, Mapping) else None
    if answers is None:
        return [read_pair(row)]
    if isinstance(answers, Rejection):
        return [answers]
    prompt = next((row[name] for name in ("prompt", "instruction", "question") if row.get(name) is not None), None)
    carried = {name: row[name] for name in CARRIED if name in row}
    candidates = list(islice(paired(answers, pairing, margin), most + 1))
    if len(candidates) > most:
        return [Rejection(f"its {len(answers)} answers make more than {most:,} pairs; set data.margin")]
    found = [
        read_pair({"prompt": prompt, "chosen": better, "rejected": worse, **carried}) for better, worse in candidates
    ]
    none = Rejection(f"no two of its {len(answers)} answers differ in score by more than {margin:g}", "tie")
    return found or [none]


def _with_system(pair: PreferencePair, system: Any) -> PreferencePair | Rejection:
    """Put the text of the column `system` before the conversation, unless that begins with a system message."""
    if not isinstance(system, str) or not system.strip():
        return pair
    if "\0" in system:
        return _nul("system")
    if isinstance(pair.prompt, str):
        texts = zip(("user", "assistant", "assistant"), pair[:3], strict=True)
        prompt, chosen, rejected = ([{"role": role, "content": text}] for role, text in texts)
        pair = PreferencePair(prompt, chosen, rejected)
    if pair.prompt[0]["role"] == "system":  # type: ignore[index]
        return pair
    return pair._replace(prompt=[{"role": "system", "content": system}, *pair.prompt])


def _with_tools(pair: PreferencePair, tools: Any) -> PreferencePair | Rejection:
    if isinstance(tools, str) and tools.strip():  # columns of a single type can hold tools only as text
        try:
            tools = json.loads(tools)
            json.dumps(tools, ensure_ascii=False).encode()  # an escape in JSON may be half a character
        except UnicodeEncodeError:
            return Rejection("'tools' contains half of a surrogate pair", "broken text")
        except (ValueError, RecursionError):
            return Rejection("'tools' is a string that is not JSON")
    if tools is None or tools == [] or (isinstance(tools, str) and not tools.strip()):
        return pair
    if too_deep(tools):
        return Rejection("'tools' are nested too deeply")
    tools = normal_tools(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        return Rejection(f"'tools' must be a list of objects, not {_kind(tools)}")
    if not pair.chat:
        return Rejection(
            "'tools' need messages: no chat template is applied to strings, so the tools would not be seen"
        )
    return pair._replace(tools=tools)


def _read_strings(row: Mapping[str, Any]) -> PreferencePair | Rejection:
    prompt = row.get("prompt")
    if isinstance(prompt, list):  # a conversation with plain texts as answers
        answers = {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
        return _read_messages({**row, **answers})
    if not isinstance(prompt, str):
        has = ", ".join(map(str, row))
        hint = f"; the row has: {has} (data.columns may name another)" if prompt is None else ""
        return Rejection(f"'prompt' must be a string or a list of messages, not {_kind(prompt)}{hint}")
    pair = PreferencePair(prompt, row["chosen"], row["rejected"])
    for name, text in (("prompt", prompt), ("chosen", row["chosen"]), ("rejected", row["rejected"])):
        if not text.strip():
            return Rejection(f"{name!r} is empty", "empty side")
        if "\0" in text:
            return _nul(name)
        if MESSAGES_AS_TEXT.match(text):
            return Rejection(f"{name!r} is a list of messages written as text; keep it as JSON Lines or Parquet")
    return pair if pair.chosen != pair.rejected else _SAME


# A list of messages as written in a CSV cell. As plain text it would be trained on, with its brackets and quotes.
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")
_SAME = Rejection("chosen and rejected are the same", "same sides")


def _nul(name: str) -> Rejection:
    return Rejection(f"{name!r} contains a NUL character", "broken text")


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
    if not prompt or any(chosen[at : at + len(prompt)] == prompt for at in range(shared - len(prompt) + 1)):
        while shared and chosen[shared - 1]["role"] == "assistant":  # this turn is the common beginning of both answers
            shared -= 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            return Rejection("no 'prompt', and chosen and rejected do not begin with the same user message")
    if not any(_says(message) for message in prompt if message["role"] != "system"):
        return Rejection("'prompt' is empty", "empty side")
    if prompt[-1]["role"] == "assistant":
        return Rejection("'prompt' ends with an assistant message, so there is no turn to answer", "roles")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        fault = _side_fault(name, side)
        if fault is not None:
            return fault
    return PreferencePair(prompt, chosen, rejected) if chosen != rejected else _SAME


def _says(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def _side_fault(name: str, side: list[Message]) -> Rejection | None:
    """Find a fault of a completion. It must begin and end with the assistant; user or tool turns may be in between."""
    roles = [message["role"] for message in side]
    if roles and (roles[0] != "assistant" or roles[-1] != "assistant" or set(roles) & {"system", "developer"}):
        return Rejection(f"{name!r} must begin and end with an assistant message, it has: {', '.join(roles)}", "roles")
    if not side or not _says(side[-1]):
        return Rejection(f"{name!r} has no answer after the prompt", "empty side")
    return None


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
        if isinstance(read, Rejection):
            return read._replace(reason=f"message {number} of {key!r} {read.reason}")
        if "\0" in read["content"]:
            return _nul(key)
        messages.append(read)
    return messages


# ShareGPT's names of speakers -> roles; and the roles that chat templates know.
SAYS = {"human": "user", "gpt": "assistant", "observation": "tool", "bing": "assistant", "chatgpt": "assistant"}
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
CALLS = ("tool_calls", "tool_call_id", "name")  # further fields that a message may have


def _message(message: Mapping[str, Any]) -> Message | Rejection:
    """Read {"role", "content"}, or {"from", "value"} as in ShareGPT. The content may be a list of parts."""
    role_key, content_key = ("from", "value") if "role" not in message and "from" in message else ("role", "content")
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str):
        return Rejection(f"has no {role_key!r} string")
    role = SAYS.get(role, role) if role_key == "from" else role
    if role not in ROLES:
        return Rejection(f"has the role {short(role)}, which is none of {', '.join(ROLES)}", "roles")
    calls = {name: message[name] for name in CALLS if message.get(name)}
    if too_deep(list(calls.values())):
        return Rejection(f"has {' and '.join(map(repr, calls))} nested too deeply")
    if "tool_calls" in calls:
        calls["tool_calls"] = normal_calls(calls["tool_calls"])
        if not calls["tool_calls"]:
            del calls["tool_calls"]
    thoughts = thoughts_of(message)
    if isinstance(thoughts, Rejection):
        return thoughts
    if isinstance(content, list):
        texts = [_text_of(part) for part in content]
        content = "".join(text for text in texts if text is not None)
        if None in texts:
            return Rejection(f"has a part that is not text: {texts.index(None) + 1} of {len(texts)}")
    if content is None and ("tool_calls" in calls or thoughts):
        content = ""
    if not isinstance(content, str):
        return Rejection(f"has no {content_key!r} string")
    return {"role": role, "content": content, **calls, **thoughts}


def _text_of(part: Any) -> str | None:
    """Return the text of one part of a content: a string, or {"type": "text", "text" or "value": ...}; else None."""
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
