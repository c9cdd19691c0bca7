"""Transcripts of two speakers in one text -> messages."""

from __future__ import annotations

import re
from typing import Any

from dpo.text.rejection import Rejection

# A turn begins with a blank line and a speaker, as in Anthropic's HH data: "\n\nHuman: ... \n\nAssistant: ...".
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
SPEAKERS = {"Human": "user", "User": "user", "System": "system", "Assistant": "assistant", "AI": "assistant"}
# Others part their turns by a line end, or by a blank alone. A looser way is tried where a stricter one fails.
PARTED = tuple(re.compile(rf"(?:^|{gap})({'|'.join(SPEAKERS)}):[ \t]?") for gap in (r"\n\s*\n", r"\n\s*", r"\s+"))
FIRST_TURN = re.compile(r"\s*(Human|User|System):")
TO_BE_ANSWERED = ("Assistant:", "AI:")


def is_transcript(value: Any) -> bool:
    """Tell whether a text begins with a speaker's name. Other names than Human count where an answer is asked for."""
    found = FIRST_TURN.match(value) if isinstance(value, str) else None
    return found is not None and (found[1] == "Human" or value.rstrip().endswith(TO_BE_ANSWERED))


def turns_of(text: str) -> list[dict[str, str]]:
    """Split a transcript into messages, without blanks around a turn; none where it is unclear who says what."""
    ways = [_split(pattern, text.lstrip()) for pattern in PARTED]
    clear = next((turns for turns in ways if _is_clear(turns, text)), None)
    return clear or (ways[0] if len(ways[0]) > 1 else [])


def _split(pattern: re.Pattern[str], text: str) -> list[dict[str, str]]:
    _, *pieces = pattern.split(text)
    return [
        {"role": SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _is_clear(turns: list[dict[str, str]], text: str) -> bool:
    """Tell whether two speakers take turns, and the last turn is the one that the end of the text begins."""
    roles = [turn["role"] for turn in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or any(role != ("user", "assistant")[number % 2] for number, role in enumerate(talk)):
        return False
    if text.rstrip().endswith(TO_BE_ANSWERED):
        return talk[-1] == "assistant" and not turns[-1]["content"]
    return len(talk) > 1 or PARTED[1].search(f"\n{turns[-1]['content']}") is None


def asked_in(prompt: str) -> list[dict[str, Any]] | Rejection:
    """Read a prompt that is one text: as the turns of a transcript, or as one turn of the user."""
    if not is_transcript(prompt):
        return [{"role": "user", "content": prompt}]
    turns = turns_of(prompt)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:  # "\n\nAssistant:", which is to be answered
        turns.pop()
    if turns and turns[-1]["role"] == "user":
        return turns
    return Rejection(
        "'prompt' is a transcript whose turns are unclear, or which does not end with a question, so that its labels "
        f"({prompt.strip().partition(':')[0]}: ...) would be learnt as text. Write its turns as messages",
        "transcript",
    )
