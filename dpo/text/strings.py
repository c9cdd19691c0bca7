"""A pair of plain strings -> without the prompt in its answers, and as messages where it is a conversation."""

from __future__ import annotations

from typing import Any, NamedTuple

from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.transcripts import TURN, asked_in, is_transcript

AS_IS, MESSAGES = "as-is", "messages"  # data.strings
IN_BOTH, IN_ONE, AS_MESSAGES = "prompt in both answers", "prompt in one answer", "strings as messages"


class Mended(NamedTuple):
    """A pair, and the names of what was noticed about its strings."""

    pair: PreferencePair | Rejection
    noticed: tuple[str, ...] = ()


def mended(pair: PreferencePair | Rejection, strings: str | None) -> Mended:
    """Cut a repeated prompt from both answers, and read strings as messages where they are a conversation.

    Args:
        strings: "as-is" leaves them strings; "messages" makes a string prompt one turn of the user, and a string answer
            one of the assistant; None does so for transcripts of Human and Assistant alone.
    """
    if isinstance(pair, Rejection):
        return Mended(pair)
    if pair.chat:
        return _without_echo(pair)
    prompt, chosen, rejected = str(pair.prompt), str(pair.chosen), str(pair.rejected)
    cut, noticed = _cut(prompt, chosen, rejected)
    if isinstance(cut, Rejection):
        return Mended(cut)
    chosen, rejected = cut
    pair = pair._replace(chosen=chosen, rejected=rejected)
    if strings == AS_IS:
        return Mended(_for_itself(pair), noticed)
    if is_transcript(prompt):
        asked = asked_in(prompt)
        more = any(map(TURN.search, cut))
        if not isinstance(asked, Rejection) and not more:
            sides = ([{"role": "assistant", "content": side.strip()}] for side in cut)
            return Mended(pair._replace(prompt=asked, chosen=next(sides), rejected=next(sides)), noticed)
        if strings == MESSAGES:
            said = "an answer has further turns (Human: ..., Assistant: ...). Write the row's turns as messages"
            return Mended(asked if isinstance(asked, Rejection) else Rejection(said, "transcript"))
    if strings == MESSAGES:
        answers = [[{"role": "assistant", "content": side}] for side in cut]
        found = pair._replace(prompt=[{"role": "user", "content": prompt}], chosen=answers[0], rejected=answers[1])
        return Mended(found, (*noticed, AS_MESSAGES))
    return Mended(_for_itself(pair), noticed)


def _without_echo(pair: PreferencePair) -> Mended:
    """Cut the last message of the prompt from two answers of one message each that begin with it."""
    asked = pair.prompt[-1]["content"]  # type: ignore[index]
    sides: Any = (pair.chosen, pair.rejected)
    if any(len(side) != 1 for side in sides):
        return Mended(pair)
    cut, noticed = _cut(asked, *(side[0]["content"] for side in sides))
    if isinstance(cut, Rejection) or IN_BOTH not in noticed:
        return Mended(cut if isinstance(cut, Rejection) else pair, noticed)
    chosen, rejected = ([{**side[0], "content": text}] for side, text in zip(sides, cut, strict=True))
    return Mended(pair._replace(chosen=chosen, rejected=rejected), noticed)


def _cut(prompt: str, *answers: str) -> tuple[tuple[str, ...] | Rejection, tuple[str, ...]]:
    """Cut a prompt that both answers repeat; returns them, and what was noticed."""
    repeats = [_repeats(prompt, side) for side in answers]
    if not all(repeats):
        return answers, (IN_ONE,) if any(repeats) else ()
    rest = tuple(side[len(prompt) :] for side in answers)
    for name, text in zip(("chosen", "rejected"), rest, strict=True):
        if not text.strip():
            return Rejection(f"{name!r} has nothing behind the prompt, which it repeats", "empty side"), ()
    return rest, (IN_BOTH,)


def _repeats(prompt: str, answer: str) -> bool:
    """Tell whether an answer begins with its whole prompt, to go on from it: a greeting may come back by chance."""
    if not answer.startswith(prompt) or len(prompt.split()) < 2:
        return False
    return (
        prompt[-1] in ".?!:"
        or prompt[-1].isspace()
        or not answer[len(prompt) :].strip()
        or (answer[len(prompt)].isspace())
    )


def _for_itself(pair: PreferencePair) -> PreferencePair | Rejection:
    """Reject strings beside which there is something for a chat template, which is not applied to them."""
    beside = [name for name, value in (("tools", pair.tools), ("chat_template_kwargs", pair.options)) if value]
    if not beside:
        return pair
    said = f"{beside[0]!r} need messages: no chat template is applied to strings"
    return Rejection(f'{said}. data.strings = "messages" reads the strings as messages')
