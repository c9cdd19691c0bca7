"""A pair in plain form (prompt, chosen, rejected and what stands beside them) -> PreferencePair, or its rejection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo.text.calls import normal_tools, too_deep
from dpo.text.messages import Message, nul, read_messages, says
from dpo.text.rejection import Rejection, kind_of
from dpo.text.shapes import Plain, Reading
from dpo.text.transcripts import asked_in, is_transcript, turns_of

Side = str | list[Message]


class PreferencePair(NamedTuple):
    """A prompt with a preferred and a rejected completion.

    All three are strings, or all three are lists of messages (then `chat` is true). A completion of several turns also
    has the user's turns; only the assistant's turns are scored, without those that have `scored`: False. `tools` and
    `options` are passed to the chat template. Both completions begin with `lead`, which is not scored.
    """

    prompt: Side
    chosen: Side
    rejected: Side
    tools: list[Any] | None = None
    options: dict[str, Any] | None = None
    lead: str = ""

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)


def pair_of(row: Plain, reading: Reading) -> PreferencePair | Rejection:
    """Read a pair in plain form."""
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            return Rejection(f"no {key!r}: it is null")
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        kinds = f"{kind_of(row['chosen'])} and {kind_of(row['rejected'])}"
        return Rejection(f"'chosen' and 'rejected' must be of one kind, they are {kinds}")
    pair = _read_strings(row) if isinstance(row["chosen"], str) else _read_messages(row)
    if isinstance(pair, PreferencePair):
        pair = _with_system(pair, row.get("system"))
    if isinstance(pair, PreferencePair):
        pair = _with_tools(pair, row.get("tools"), row.get("tools_name", "tools"))
    return pair if isinstance(pair, Rejection) else _finished(pair, row, reading)


def _finished(pair: PreferencePair, row: Plain, reading: Reading) -> PreferencePair | Rejection:
    """Add the template's options and the beginning that is not scored, and mark the turns that are not."""
    lead = row.get("lead", "")
    if not isinstance(lead, str) or "\0" in lead:
        return Rejection("'initial_reason_steps' must be a string without NUL characters")
    pair = pair._replace(options=row.get("options"), lead=lead)
    if not pair.chat:
        return pair
    sides = [_marked(list(side), reading.scored) for side in (pair.chosen, pair.rejected)]  # type: ignore[arg-type]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if not any(message["role"] == "assistant" and message.get("scored", True) for message in side):
            return Rejection(f"no turn of {name!r} is scored: all have weight 0", "empty side")
    return pair._replace(prompt=[_without(message) for message in pair.prompt], chosen=sides[0], rejected=sides[1])  # type: ignore[arg-type]


def _without(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "scored"} if "scored" in message else message


def _marked(side: list[Message], scored: str) -> list[Message]:
    """Mark all turns of the assistant but the last as not scored, if that alone is to be."""
    if scored == "all":
        return side
    return [{**m, "scored": False} if m["role"] == "assistant" else m for m in side[:-1]] + side[-1:]


def _with_system(pair: PreferencePair, system: Any) -> PreferencePair | Rejection:
    """Put the text of the column `system` before the conversation, unless that begins with the same message."""
    if isinstance(system, list) and system and all(isinstance(p, Mapping) and "role" not in p for p in system):
        system = [{"role": "system", "content": system}]  # parts of one text, as in Anthropic's requests and Bedrock's
    if isinstance(system, (list, Mapping)):
        read = read_messages("system", system)
        if isinstance(read, Rejection):
            return read
        if any(message["role"] not in ("system", "developer") for message in read):
            return Rejection("'system' must be a text or messages of the system", "roles")
        system = "\n".join(message["content"] for message in read)
    if system is not None and not isinstance(system, str):
        return Rejection(f"'system' must be a string, not {kind_of(system)}")
    if system is None or not system.strip():
        return pair
    if "\0" in system:
        return nul("system")
    if isinstance(pair.prompt, str):
        read = asked_in(pair.prompt)
        if isinstance(read, Rejection):
            return read
        sides = (str(side).strip() if is_transcript(pair.prompt) else side for side in pair[1:3])
        chosen, rejected = ([{"role": "assistant", "content": side}] for side in sides)
        pair = PreferencePair(read, chosen, rejected)
    if pair.prompt[0]["role"] == "system":  # type: ignore[index]
        same = pair.prompt[0]["content"].strip() == system.strip()  # type: ignore[index]
        differ = "'system' and the system message of the conversation differ; data.ignore = [\"system\"] leaves one out"
        return pair if same else Rejection(differ)
    return pair._replace(prompt=[{"role": "system", "content": system}, *pair.prompt])


def _with_tools(pair: PreferencePair, tools: Any, name: str) -> PreferencePair | Rejection:
    if isinstance(tools, str) and tools.strip():  # columns of a single type can hold tools only as text
        try:
            tools = json.loads(tools)
            json.dumps(tools, ensure_ascii=False).encode()  # an escape in JSON may be half a character
        except UnicodeEncodeError:
            return Rejection(f"{name!r} contains half of a surrogate pair", "broken text")
        except (ValueError, RecursionError):
            return Rejection(f"{name!r} is a string that is not JSON")
    if tools is None or tools == [] or (isinstance(tools, str) and not tools.strip()):
        return pair
    if too_deep(tools):
        return Rejection(f"{name!r} are nested too deeply")
    tools = normal_tools(tools)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        return Rejection(f"{name!r} must be a list of objects, not {kind_of(tools)}")
    return pair._replace(tools=tools)


def _read_strings(row: Plain) -> PreferencePair | Rejection:
    prompt = row.get("prompt")
    if is_transcript(row["chosen"]) and is_transcript(row["rejected"]):
        whole = {side: turns_of(row[side]) for side in ("chosen", "rejected")}
        if all(any(turn["role"] == "assistant" for turn in turns) for turns in whole.values()):
            return _whole_transcripts(prompt, {**row, **whole})
    if isinstance(prompt, list):  # a conversation with plain texts as answers
        answers = {key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}
        return _read_messages({**row, **answers})
    if not isinstance(prompt, str):
        return Rejection(f"'prompt' must be a string or a list of messages, not {kind_of(prompt)}")
    pair = PreferencePair(prompt, row["chosen"], row["rejected"])
    for name, text in (("prompt", prompt), ("chosen", row["chosen"]), ("rejected", row["rejected"])):
        if not text.strip():
            return Rejection(f"{name!r} is empty", "empty side")
        if "\0" in text:
            return nul(name)
    return pair if pair.chosen != pair.rejected else _SAME


def _whole_transcripts(prompt: Any, row: Plain) -> PreferencePair | Rejection:
    """Read answers that are whole transcripts, which begin with the prompt."""
    asked = asked_in(prompt) if isinstance(prompt, str) else read_messages("prompt", prompt)
    if isinstance(asked, Rejection):
        return asked
    asked = [{**message, "content": message["content"].strip()} for message in asked]
    if any(row[side][: len(asked)] != asked for side in ("chosen", "rejected")):
        return Rejection(
            "'chosen' and 'rejected' are whole transcripts (Human: ..., Assistant: ...) that do not begin with the "
            'prompt. data.ignore = ["prompt"] reads them alone',
            "transcript",
        )
    return _read_messages({**row, "prompt": asked})


_SAME = Rejection("chosen and rejected are the same", "same sides")


def _read_messages(row: Plain) -> PreferencePair | Rejection:
    sides: dict[str, list[Message]] = {}
    for key in ("prompt", "chosen", "rejected"):
        value = row.get(key)
        if key == "prompt" and value is None:
            value = []
        if key == "prompt" and isinstance(value, str):
            value = asked_in(value)
        read = value if isinstance(value, Rejection) else read_messages(key, value)
        if isinstance(read, Rejection):
            return read
        sides[key] = read
    prompt = sides["prompt"]
    chosen, rejected = (_with_lead(prompt, sides[key]) for key in ("chosen", "rejected"))
    shared = _shared_length(chosen, rejected)
    if not prompt or any(chosen[at : at + len(prompt)] == prompt for at in range(shared - len(prompt) + 1)):
        while shared and chosen[shared - 1]["role"] == "assistant":  # this turn is the common beginning of both answers
            shared -= 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            return Rejection("no 'prompt', and chosen and rejected do not begin with the same user message")
    if not any(says(message) for message in prompt if message["role"] != "system"):
        return Rejection("'prompt' is empty", "empty side")
    if prompt[-1]["role"] == "assistant":
        return Rejection("'prompt' ends with an assistant message, so there is no turn to answer", "roles")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        fault = _side_fault(name, side)
        if fault is not None:
            return fault
    same = [_without(message) for message in chosen] == [_without(message) for message in rejected]
    return _SAME if same else PreferencePair(prompt, chosen, rejected)


def _with_lead(prompt: list[Message], side: list[Message]) -> list[Message]:
    """Return a whole conversation with the system message of the prompt, which it may lack."""
    asked = [message for message in prompt if message["role"] not in ("system", "developer")]
    lead = prompt[: len(prompt) - len(asked)]
    lacks = bool(lead and asked) and prompt == [*lead, *asked] and side[: len(asked)] == asked
    return [*lead, *side] if lacks else side


def _side_fault(name: str, side: list[Message]) -> Rejection | None:
    """Find a fault of a completion. It must begin and end with the assistant; user or tool turns may be in between."""
    roles = [message["role"] for message in side]
    if roles and (roles[0] != "assistant" or roles[-1] != "assistant" or set(roles) & {"system", "developer"}):
        return Rejection(f"{name!r} must begin and end with an assistant message, it has: {', '.join(roles)}", "roles")
    if not side or not says(side[-1]):
        return Rejection(f"{name!r} has no answer after the prompt", "empty side")
    return None


def _shared_length(chosen: list[Message], rejected: list[Message]) -> int:
    length = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours != theirs:
            break
        length += 1
    return length
