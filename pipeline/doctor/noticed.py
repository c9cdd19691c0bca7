"""Things noticed while rows were read -> findings. These rows are used."""

from __future__ import annotations

from typing import Any, NamedTuple

from dpo.text.strings import AS_MESSAGES, IN_BOTH, IN_ONE
from dpo.text.variants import variant_said
from pipeline.config import Config
from pipeline.data import noticed as names
from pipeline.data import scores
from pipeline.doctor.findings import Example, Finding, RowText, counted, graded


class Said(NamedTuple):
    """The words of a finding about a noticed thing."""

    finding: str
    title: str  # the rest of the title, after the number of pairs
    detail: str
    fix: str
    warning: float  # share of the pairs from which it is a warning
    note: float = 0.0  # share of the pairs above which it is a finding at all


SAID = {
    IN_BOTH: Said(
        "prompt-in-answer",
        "pairs repeat the prompt in both answers",
        "It is cut from both, so that it is not trained as a part of the answer.",
        "Nothing to do, unless your answers shall begin with their prompt.",
        2.0,
    ),
    IN_ONE: Said(
        "prompt-in-answer",
        "pairs repeat the prompt in one of their answers",
        "The two answers then differ in this as well, and the model learns to repeat the question, or not to.",
        "Remove the prompt from these answers.",
        0.0,
    ),
    names.PAST_TEMPLATE: Said(
        "strings-past-template",
        "pairs are plain strings, and the tokenizer has a chat template",
        "The template is not applied to strings: prompt and answer are joined as they are, so a chat model is trained "
        "outside of the form in which it is asked.",
        'Set data.strings = "messages", which makes a prompt one turn of the user and an answer one of the assistant, '
        'or "as-is" if the strings are meant so.',
        0.0,
    ),
    scores.CONTRADICT: Said(
        "scores-contradict",
        "pairs have a chosen answer with a lower score than the rejected one",
        "The scores in the row say the opposite of its preference.",
        "Check which side is which in these rows, or which of the two is right.",
        0.0,
    ),
    scores.EQUAL: Said(
        "scores-equal",
        "pairs have two answers with equal scores",
        "By its scores such a row has no preference.",
        "Remove these rows if the scores made the preference.",
        0.2,
    ),
    names.NULLS: Said(
        "nulls-in-calls",
        "pairs have nulls in tool calls or tools",
        "Columns of one type give every call the fields of all others, as nulls. They are left out.",
        "Nothing to do. A null that is meant must be in arguments that are JSON text, or in enum, const or default.",
        2.0,
    ),
    names.JSON_TEXT: Said(
        "json-in-json",
        "pairs have tool calls whose arguments are JSON text",
        "The text is read, so that the template writes an object and not a string with escaped quotes.",
        "Nothing to do.",
        2.0,
    ),
    names.GLUED: Said(
        "words-glued",
        "pairs have no blank between the prompt and the answer",
        "Prompt and answer are joined as they are, so that words stand together that no text has so.",
        "Begin every answer, or end every prompt, with a blank or a line break.",
        0.5,
        0.5,
    ),
    names.LISTS: Said(
        "looks-like-json",
        "pairs have answers that look like lists or objects written as text",
        'They begin with [", [{ or {"text": and are trained as they stand, with brackets and quotes.',
        "Read the cells before, so that each answer is a text or a list of messages; nothing if they are meant so.",
        0.5,
        0.5,
    ),
    AS_MESSAGES: Said(
        "mixed-forms",
        "pairs of strings are read as messages, as other rows of their file are",
        "All rows of a file have one form, so that the model sees one format.",
        'Nothing to do. data.strings = "as-is" leaves them strings.',
        2.0,
    ),
}


def noticed(counts: dict[str, Any], rows: dict[str, list[RowText]], config: Config, tokenizer: Any) -> list[Finding]:
    """Findings on what was noticed.

    Args:
        counts: of the stage prepare.
        rows: the first rows of each name.
    """
    found, pairs = [], max(1, counts["chat"] + counts["strings"])
    for name, number in counts.get("noticed", {}).items():
        said, share = SAID[name], number / pairs
        glued_on_purpose = name == names.GLUED and tokenizer.chat_template is not None
        if share <= said.note or glued_on_purpose or (name == AS_MESSAGES and config.data.strings is not None):
            continue
        found.append(
            Finding(
                said.finding,
                graded(share, said.warning),
                counted(number, said.title),
                said.detail,
                said.fix,
                number,
                share,
                tuple(map(Example, rows.get(name, ()))),
            )
        )
    return [*found, *_turns(counts, config), *_variant(counts, tokenizer)]


def _turns(counts: dict[str, Any], config: Config) -> list[Finding]:
    number = counts["several_turns"]
    if not number or config.data.scored == "last":
        return []
    title = counted(number, "pairs have answers of several turns, and every turn of the assistant is scored")
    detail = "The preference between the two answers may be about their last turn alone."
    fix = 'Nothing to do if all turns are meant. Otherwise set data.scored = "last".'
    return [Finding("turns-all-scored", "note", title, detail, fix, number, number / counts["chat"])]


def _variant(counts: dict[str, Any], tokenizer: Any) -> list[Finding]:
    variant = variant_said(tokenizer.chat_template, counts["several_turns"], counts["chat"])
    if variant is None:
        return []
    title = f"the chat template of {variant.model} is used in a variant for training"
    detail = f"The template writes a turn differently once another follows. In the variant {variant.difference}."
    return [Finding("template-variant", "note", title, detail, "Nothing to do. The export keeps the template itself.")]
