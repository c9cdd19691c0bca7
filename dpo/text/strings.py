"""A pair of plain strings -> without the prompt in its answers, and as messages where it is a conversation."""

from __future__ import annotations

from typing import NamedTuple

from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.transcripts import TURN, is_transcript, turns_of

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
    if isinstance(pair, Rejection) or pair.chat:
        return Mended(pair)
    prompt, chosen, rejected = str(pair.prompt), str(pair.chosen), str(pair.rejected)
    repeats = [side.startswith(prompt) for side in (chosen, rejected)]
    noticed = (IN_ONE,) if any(repeats) else ()
    if all(repeats):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not chosen.strip() or not rejected.strip():
            name = "chosen" if not chosen.strip() else "rejected"
            return Mended(Rejection(f"{name!r} has nothing behind the prompt, which it repeats", "empty side"))
        pair, noticed = pair._replace(chosen=chosen, rejected=rejected), (IN_BOTH,)
    if strings == AS_IS:
        return Mended(_for_itself(pair), noticed)
    if is_transcript(prompt):
        asked = turns_of(prompt)
        if asked[-1]["role"] == "assistant" and not asked[-1]["content"]:  # "\n\nAssistant:", which is to be answered
            asked.pop()
        if asked and asked[-1]["role"] == "user" and not any(map(TURN.search, (chosen, rejected))):
            sides = ([{"role": "assistant", "content": side.strip()}] for side in (chosen, rejected))
            return Mended(pair._replace(prompt=asked, chosen=next(sides), rejected=next(sides)), noticed)
    if strings == MESSAGES:
        answers = [[{"role": "assistant", "content": side}] for side in (chosen, rejected)]
        asked = [{"role": "user", "content": prompt}]
        found = pair._replace(prompt=asked, chosen=answers[0], rejected=answers[1])
        return Mended(found, (*noticed, AS_MESSAGES))
    return Mended(_for_itself(pair), noticed)


def _for_itself(pair: PreferencePair) -> PreferencePair | Rejection:
    """Reject strings beside which there is something for a chat template, which is not applied to them."""
    beside = [name for name, value in (("tools", pair.tools), ("chat_template_kwargs", pair.options)) if value]
    if not beside:
        return pair
    said = f"{beside[0]!r} need messages: no chat template is applied to strings"
    return Rejection(f'{said}. data.strings = "messages" reads the strings as messages')
