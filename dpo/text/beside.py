"""Fields beside the texts of a row or a message that change what a chat template writes -> one form of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo.text.calls import parsed, too_deep
from dpo.text.rejection import Rejection

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # names of a message's thoughts; the first is ours
# Arguments of `apply_chat_template` that are not the template's to read.
TAKEN = ("tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict", "chat_template")


def thoughts_of(message: Mapping[str, Any]) -> dict[str, str] | Rejection:
    """Read the thoughts of a message, if it has any: three names for one value, which is kept under the first."""
    found = {name: message[name] for name in THOUGHTS if message.get(name)}
    if not all(isinstance(value, str) for value in found.values()):
        return Rejection(f"has {' and '.join(map(repr, found))}, not as a string")
    texts = list(dict.fromkeys(value for value in found.values() if value.strip()))
    if len(texts) > 1:
        return Rejection(f"has {' and '.join(map(repr, found))}, which differ")
    if texts and "\0" in texts[0]:
        return Rejection("has thoughts with a NUL character", "broken text")
    return {THOUGHTS[0]: texts[0]} if texts else {}


def template_options(options: Any) -> dict[str, Any] | Rejection:
    """Read `chat_template_kwargs`, the template's options for one row."""
    options = parsed(options)
    if not options:
        return {}
    if not isinstance(options, Mapping) or too_deep(options):
        return Rejection(f"'chat_template_kwargs' must be an object with the template's options, it is {options!r:.60}")
    found = {str(name): value for name, value in options.items() if value is not None}
    if not found.keys().isdisjoint(TAKEN):
        return Rejection(f"'chat_template_kwargs' may not have any of {', '.join(TAKEN)}")
    return found
