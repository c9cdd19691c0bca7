"""Transcripts of two speakers in one text -> messages."""

from __future__ import annotations

import re
from typing import Any

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
