"""Conversations that are written as one text: transcripts of two speakers, and lists of messages in a cell."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from dpo.text.rejection import Rejection

# A turn begins with a blank line and a speaker, as in Anthropic's HH data: "\n\nHuman: ... \n\nAssistant: ...".
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
FIRST_TURN = re.compile(r"\s*Human:")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and FIRST_TURN.match(value) is not None


def turns_of(text: str) -> list[dict[str, str]]:
    """Split a transcript into messages. Blanks around a turn are removed."""
    _, *pieces = TURN.split(text.lstrip())
    return [
        {"role": SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def messages_in_text(name: str, text: str) -> list[Any] | Rejection | None:
    """Read a list of messages that stands in a cell, as JSON or as Python writes it; None for any other text."""
    if not MESSAGES_AS_TEXT.match(text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            both = all(re.search(f"""['"]{key}['"]""", text) for key in ("role", "content"))
            said = f"{name!r} is a list of messages written as text that is no JSON; keep it as JSON Lines or Parquet"
            return Rejection(said) if both else None
    found = [found] if isinstance(found, Mapping) else found
    whole = all(isinstance(one, Mapping) and any(keys <= {*one} for keys in OF_MESSAGES) for one in found)
    return found if whole else None


OF_MESSAGES = ({"role", "content"}, {"from", "value"})
# A list of messages as written in a CSV cell. As plain text it would be trained on, with its brackets and quotes.
MESSAGES_AS_TEXT = re.compile(r"""\s*(?:\[\s*)?\{\s*['"](role|from|content|value)['"]\s*:""")
