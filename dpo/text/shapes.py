"""The columns of a row -> prompt, chosen and rejected, for each shape of rows that has a reading of its own.

A reading takes the columns that it uses. It returns pairs in plain form: `prompt`, `chosen`, `rejected`, each a string
or messages, and where there are any `lead`, an unscored beginning of both answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from reprlib import repr as short
from typing import Any, NamedTuple

from dpo.text.calls import too_deep
from dpo.text.fields import Fields
from dpo.text.ranked import contradiction, list_of, paired, scored
from dpo.text.rejection import UNREAD, Rejection, kind_of
from dpo.text.transcripts import is_transcript, turns_of
from dpo.text.verdict import Verdict, better

Plain = dict[str, Any]
Found = Plain | Rejection | list[Plain | Rejection]


class Reading(NamedTuple):
    """How rows become pairs, beyond what their keys say.

    Args of a configuration: `columns` maps our names to those of the rows, `verdict` says what a winner means,
    `ignore` names columns that are knowingly not read. `scored` is "all" or "last": the turns of an answer that are
    scored. `pairing` pairs the best answer with the worst, or "all" with every lower-scored one, if their scores
    differ by more than `margin`. A row with more than `most` pairs is rejected.
    """

    columns: Mapping[str, str] = {}
    verdict: Verdict = None
    ignore: tuple[str, ...] = ()
    scored: str = "all"
    pairing: str = "best_worst"
    margin: float = 0.0
    most: int = 2048


SIDES = ("chosen", "rejected")
ASKED = ("prompt", "instruction", "question", "query")  # names of a prompt, the surest first
TALKS = ("input", "context", "messages", "conversation", "conversations")  # and of what may stand for one


# Prompts


def asked(fields: Fields) -> Any:
    """Take the prompt of a row: with `input` behind an `instruction`, and `history` before it."""
    name = fields.first(*ASKED)
    prompt = fields.take(*ASKED)
    if name is None:
        return fields.take("input") if isinstance(fields.peek("input"), str) else None
    if name == "instruction" and isinstance(prompt, str) and isinstance(fields.peek("input"), str):
        given = fields.take("input")
        prompt = f"{prompt}\n{given}" if given.strip() else prompt
    history = fields.peek("history")
    if name == "prompt" or not isinstance(prompt, str) or history in (None, "", []):
        return prompt
    turns = history if isinstance(history, list) else [history]
    if not all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(x, str) for x in turn) for turn in turns):
        return Rejection("'history' must be a list of [question, answer] pairs of texts")
    fields.take("history")
    said = [
        message
        for question, answer in turns
        for message in (message_of("user", question), message_of("assistant", answer))
    ]
    return [*said, message_of("user", prompt)]


def message_of(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _sides(fields: Fields, chosen: str = "chosen", rejected: str = "rejected") -> Plain:
    return {"chosen": fields.take(chosen), "rejected": fields.take(rejected)}


def no_prompt(fields: Fields, name: str = "prompt") -> Rejection:
    """Reject a row whose prompt, a column of this name, is missing or null."""
    has = ", ".join(fields.names)
    return Rejection(f"{name!r} must be a string or a list of messages, not null; the row has: {has}")


# Readings


def preference(fields: Fields, _: Reading) -> Found:
    """Read prompt, chosen and rejected."""
    prompt = asked(fields)
    if isinstance(prompt, Rejection):
        return prompt
    pair = {"prompt": prompt, **_sides(fields)}
    texts = all(isinstance(pair[side], list) and pair[side] and isinstance(pair[side][0], str) for side in SIDES)
    if texts and prompt is not None:
        return Rejection("'chosen' and 'rejected' are lists of texts")
    return pair


def implicit(fields: Fields, _: Reading) -> Found:
    """Cut two strings at the last blank of their common beginning, which is the prompt; or read transcripts."""
    pair = _sides(fields)
    chosen, rejected = pair["chosen"], pair["rejected"]
    null = [name for name in fields.names if name in (*ASKED, *TALKS) and name not in fields]
    if null:
        said = "(In rows without such a column the words that both answers begin with are the prompt)"
        return Rejection(f"{no_prompt(fields, null[0]).reason}. {said}")
    if all(map(is_transcript, (chosen, rejected))):
        return {"prompt": None, "chosen": turns_of(chosen), "rejected": turns_of(rejected)}
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if chosen == rejected:
        return Rejection("chosen and rejected are the same", "same sides")
    at = max(chosen.rfind(blank, 1, shared + (chosen[shared : shared + 1] == blank)) for blank in (" ", "\n"))
    if at < 1 or not chosen[:at].strip():
        return Rejection(
            "'prompt' must be a string or a list of messages, not null; the row has: "
            f"{', '.join(map(str, fields.row))}. Without a prompt both answers must begin with the same words, which "
            'are the prompt then. data.columns = { prompt = "..." } names the column that holds it'
        )
    return {"prompt": chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}


def repeated_transcripts(fields: Fields, _: Reading) -> Found:
    """Read transcripts on both sides that begin with the transcript in `prompt`."""
    fields.take("prompt")
    pair = _sides(fields)
    return {"prompt": None, **{side: turns_of(text) for side, text in pair.items()}}


def steps(fields: Fields, _: Reading) -> Found:
    """Read answers that go on from `initial_reason_steps`, an unscored beginning of both."""
    return {"prompt": fields.take("prompt"), "lead": fields.take("initial_reason_steps"), **_sides(fields)}


def message_sides(fields: Fields, _: Reading) -> Found:
    """Read `chosen_messages` and `rejected_messages`, or `chosen_conversations` and `rejected_conversations`."""
    ends = "messages" if "chosen_messages" in fields else "conversations"
    return {"prompt": fields.take("prompt"), **_sides(fields, f"chosen_{ends}", f"rejected_{ends}")}


def under(chosen: str, rejected: str) -> Any:
    """Make the reading of answers under two names of their own."""

    def read(fields: Fields, _: Reading) -> Found:
        prompt = asked(fields)
        return prompt if isinstance(prompt, Rejection) else {"prompt": prompt, **_sides(fields, chosen, rejected)}

    return read


def conversation(fields: Fields, _: Reading) -> Found:
    """Read `conversations` or `messages` that end with a question, and one answer a side.

    Where `chosen` is the whole conversation, its own beginning is the prompt.
    """
    name = fields.first("conversations", "messages", "conversation") or ""
    before = fields.peek(name)
    pair = _sides(fields)
    if isinstance(before, list) and before and not too_deep(before) and before == pair["chosen"]:  # another copy
        fields.take(name)
        return {"prompt": None, **pair}
    return {"prompt": fields.take(name), **pair}


def swift(fields: Fields, _: Reading) -> Found:
    """Read `messages` that end with the chosen answer, and the rejected one as a text or as whole messages."""
    messages = fields.take("messages")
    if "rejected_messages" in fields:
        return {"prompt": None, "chosen": messages, "rejected": fields.take("rejected_messages")}
    rejected = fields.take("rejected_response")
    rejected = [message_of("assistant", rejected)] if isinstance(rejected, str) else rejected
    if not isinstance(messages, list) or not messages or not isinstance(rejected, list):
        return Rejection(
            "'messages' must be a list that ends with the chosen answer and 'rejected_response' a text or messages, "
            f"they are {kind_of(messages)} and {kind_of(rejected)}"
        )
    return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": rejected}


def openai(fields: Fields, _: Reading) -> Found:
    """Read `input` with messages and tools, `preferred_output` and `non_preferred_output`."""
    given = fields.take("input")
    extra = sorted(name for name in given if name not in OF_REQUESTS and given[name])
    if extra:
        return Rejection(f"'input' has {', '.join(extra)} beside messages and tools, which nobody reads", UNREAD)
    pair = _sides(fields, "preferred_output", "non_preferred_output")
    return {"prompt": given["messages"], "tools": given.get("tools"), **pair}


OF_REQUESTS = ("messages", "tools", "parallel_tool_calls", "tool_choice")


def two_answers(names: tuple[str, str], asks: tuple[str, ...] = (), column: str = "winner") -> Any:
    """Make the reading of two answers with a winner."""
    first, second = names

    def read(fields: Fields, reading: Reading) -> Found:
        won = better(fields, first, second, reading.verdict, column)
        if isinstance(won, Rejection):
            return won
        if won == "tie":
            said = fields.peek(column)
            return Rejection(f"a tie ({short('tie' if said is None else said)}) expresses no preference", "tie")
        chosen, rejected = (first, second) if won == "a" else (second, first)
        prompt = fields.take(*asks) if asks else asked(fields)
        return prompt if isinstance(prompt, Rejection) else {"prompt": prompt, **_sides(fields, chosen, rejected)}

    return read


def ranked(fields: Fields, reading: Reading) -> Found:
    """Read a list of scored answers, which may make several pairs."""
    key = list_of(fields) or ""
    answers = scored(fields, key, reading.verdict)
    if isinstance(answers, Rejection):
        return answers
    prompt = asked(fields)
    if prompt is None:
        names = (name for name in ("context", "messages", "contents") if isinstance(fields.peek(name), list))
        prompt = fields.take(*names)
    if isinstance(prompt, Rejection):
        return prompt
    candidates = list(islice(paired(answers, reading.pairing, reading.margin), reading.most + 1))
    if len(candidates) > reading.most:
        return Rejection(f"its {len(answers)} answers make more than {reading.most:,} pairs; set data.margin")
    none = Rejection(f"no two of its {len(answers)} answers differ in score by more than {reading.margin:g}", "tie")
    if not answers:
        return Rejection(f"{key!r} has no answers", "empty side")
    if prompt is None and candidates:
        return no_prompt(fields)
    return [
        contradiction(chosen, rejected) or {"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text}
        for chosen, rejected in candidates
    ] or none


def tree(fields: Fields, reading: Reading) -> Found:
    """Read a tree of messages: the ranked answers to each question make pairs, the best against the worst.

    Messages that are deleted, and what answers them, are no part of it.
    """
    found = list(islice(_branches(fields.take("prompt"), [], reading.pairing), reading.most + 1))
    if len(found) > reading.most:
        return Rejection(f"the tree makes more than {reading.most:,} pairs")
    return found or Rejection("no message of the tree has two answers with different ranks", "tie")


def _branches(message: Any, before: list[Any], pairing: str) -> Iterator[Plain | Rejection]:
    replies = message.get("replies") or [] if isinstance(message, Mapping) else None
    if replies is None or not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        yield Rejection("'replies' of a tree must be a list of messages")
        return
    if not isinstance(message.get("role"), str):
        yield Rejection("a message of the tree has no 'role' string")
        return
    if len(before) > 60:
        yield Rejection("the tree is nested too deeply")
        return
    replies = [reply for reply in replies if reply.get("deleted") is not True]
    if message.get("deleted") is True:
        return
    here = [*before, {"role": message.get("role"), "content": message.get("text")}]
    answers = [
        ({"role": reply.get("role"), "content": reply.get("text")}, -reply["rank"])
        for reply in replies
        if isinstance(reply.get("rank"), int) and not isinstance(reply["rank"], bool)
    ]
    if message.get("role") in ("prompter", "user"):
        if 0 < len(answers) < len(replies):
            yield Rejection("a reply without a rank, beside others with one, expresses no preference", "tie")
        for chosen, rejected in paired(answers, pairing, 0.0):
            yield {"prompt": here, "chosen": [chosen], "rejected": [rejected]}
    for reply in replies:
        yield from _branches(reply, here, pairing)
