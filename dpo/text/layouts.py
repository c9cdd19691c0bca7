"""The table of layouts: how rows of known data sets and trainers look, and how each is read.

The columns of a row that are not null decide its layout; the first entry that fits is taken. To add one, write its
entry where it is surer than what follows, and a row of it in tests/dpo/text/test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from dpo.text import shapes
from dpo.text.arena import arena
from dpo.text.cell import LIST_OR_OBJECT, decoded, may_stand_for_more
from dpo.text.fields import Fields
from dpo.text.lines import Lines, said
from dpo.text.ranked import list_of
from dpo.text.shapes import Found, Reading
from dpo.text.transcripts import is_transcript


class Layout(NamedTuple):
    """One kind of row.

    Attributes:
        needs: columns that such a row has.
        read: the reading; None where a verdict cannot be known, so that `write` must be written into the configuration.
        fits: a further condition on the values.
        lacks: columns that such a row does not have.
        leaves: columns that are known and not read: they are no part of the conversation.
        write: what to write under [data] where the row alone does not say enough.
    """

    name: str
    needs: frozenset[str]
    read: Callable[[Fields, Reading], Found] | None
    fits: Callable[[Fields], bool] = lambda fields: True
    lacks: frozenset[str] = frozenset()
    leaves: frozenset[str] = frozenset()
    write: Lines | None = None

    @property
    def lines(self) -> str:
        """The lines to write under [data], as they are printed."""
        return said(self.write) if self.write else ""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _strings(fields: Fields, *names: str) -> bool:
    return all(isinstance(fields.peek(name), str) for name in names)


def _one_of_cells(fields: Fields) -> bool:
    """Tell whether the prompt and an answer are lists of texts, one a turn, by themselves or as text."""
    cells = [fields.peek(name) for name in ("prompt", "response_a", "response_b")]
    lists = [isinstance(cell, list) or (isinstance(cell, str) and may_stand_for_more(cell)) for cell in cells]
    texts = isinstance(cells[0], str) or (isinstance(cells[0], list) and all(isinstance(c, str) for c in cells[0]))
    return lists[0] and any(lists[1:]) and texts and isinstance(decoded(cells[0]), list)


def _transcripts_behind_it(fields: Fields) -> bool:
    prompt, *sides = (fields.peek(name) for name in ("prompt", "chosen", "rejected"))
    if not isinstance(prompt, str) or not all(isinstance(side, str) and side.startswith(prompt) for side in sides):
        return False
    return is_transcript(prompt)


def _no_transcripts(fields: Fields) -> bool:
    """Tell whether the sides are not whole transcripts, which have their prompt in them."""
    return not (is_transcript(fields.peek("chosen")) and is_transcript(fields.peek("rejected")))


def _no_other_text(fields: Fields) -> bool:
    """Tell whether two strings stand alone, so that no prompt under another name is passed over."""
    others = {name: value for name, value in fields.row.items() if name not in ("chosen", "rejected")}
    texts = (value for name, value in others.items() if name not in ABOUT_ANSWERS and value not in ("", [], {}))
    if not _strings(fields, *BOTH) or any(LIST_OR_OBJECT.match(fields.peek(side)) for side in BOTH):
        return False  # a list or an object in a cell has no beginning that could be a prompt
    return not any(
        not isinstance(value, (int, float, str)) or (isinstance(value, str) and len(value.split()) > 1)
        for value in texts
    )


ABOUT_ANSWERS = _names("system tools chosen_model rejected_model chosen_score rejected_score")
JUDGED = ("response_a", "response_b")
PROMETHEUS = ("orig_response_A", "orig_response_B")
BOTH = _names("chosen rejected")
LAYOUTS = (
    # Two answers and a verdict
    Layout("LMSYS' and Kaggle's arena", _names("prompt response_a response_b"), arena, _one_of_cells, BOTH),
    Layout("two answers with a winner", frozenset(JUDGED), shapes.two_answers(JUDGED), lacks=BOTH),
    Layout(
        "two conversations with a winner",
        _names("conversation_a conversation_b"),
        shapes.two_answers(("conversation_a", "conversation_b"), ("prompt",)),
        lacks=BOTH,
        leaves=_names("openai_moderation toxic_chat_tag anony conv_metadata"),
    ),
    Layout(
        "Prometheus",
        _names("orig_instruction orig_response_A orig_response_B orig_preference"),
        shapes.two_answers(PROMETHEUS, ("orig_instruction",), "orig_preference"),
        leaves=_names("instruction input output orig_criteria orig_feedback orig_reference_answer"),
    ),
    # Both sides have their own names
    Layout("OpenAI's preference rows", _names("input preferred_output non_preferred_output"), shapes.openai,
           lambda fields: isinstance(fields.peek("input"), dict) and "messages" in fields.peek("input")),
    Layout("chosen_messages and rejected_messages", _names("chosen_messages rejected_messages"), shapes.message_sides),
    Layout("torchtune", _names("chosen_conversations rejected_conversations"), shapes.message_sides),
    Layout("ms-swift", _names("messages rejected_response"), shapes.swift, lacks=BOTH | {"chosen_response"}),
    Layout("ms-swift with whole conversations", _names("messages rejected_messages"), shapes.swift, lacks=BOTH),
    Layout("ms-swift with query and history", _names("query response rejected_response"),
           shapes.under("response", "rejected_response"), lacks=BOTH),
    Layout("Stack Exchange's pairs", _names("question response_j response_k"),
           shapes.under("response_j", "response_k"), lacks=BOTH),
    # chosen and rejected, and something else
    Layout("ShareGPT, LLaMA-Factory", BOTH | {"conversations"}, shapes.conversation, lacks=_names("prompt")),
    Layout("Axolotl's chat_template", BOTH | {"messages"}, shapes.conversation,
           lambda fields: not isinstance(fields.peek("messages"), str), _names("prompt")),
    Layout("Step-DPO", BOTH | _names("prompt initial_reason_steps"), shapes.steps,
           leaves=_names("full_chosen full_rejected answer")),
    Layout("transcripts with their prompt", BOTH | {"prompt"}, shapes.repeated_transcripts, _transcripts_behind_it),
    Layout("prompt, chosen and rejected", BOTH | {"prompt"}, shapes.preference),
    Layout("instruction, input and history (alpaca)", BOTH | {"instruction"}, shapes.preference),
    Layout("question, chosen and rejected (orca)", BOTH | {"question"}, shapes.preference, _no_transcripts,
           leaves=_names("vulnerability")),
    Layout("query, chosen and rejected", BOTH | {"query"}, shapes.preference, _no_transcripts),
    Layout("input, chosen and rejected", BOTH | {"input"}, shapes.preference,
           lambda fields: _strings(fields, "input") and _no_transcripts(fields)),
    Layout("one string a side", BOTH, shapes.implicit, _no_other_text),
    Layout("one conversation a side", BOTH, shapes.preference,
           lambda fields: not any(isinstance(fields.peek(side), str) for side in BOTH)),
    # Several answers
    Layout("UltraFeedback, distilabel, Nectar, NeMo-RL: scored answers", frozenset(), shapes.ranked,
           lambda fields: list_of(fields) is not None, BOTH,
           _names("models generation_models rationales correct_answers incorrect_answers good_natured")),
    Layout("OpenAssistant's trees", _names("prompt"), shapes.tree,
           lambda fields: isinstance(fields.peek("prompt"), dict) and "replies" in fields.peek("prompt"), BOTH),
)  # fmt: skip
# Layouts whose verdict is a number: what it means must be said, as others mean the opposite by it.
TO_BE_SAID = (
    Layout("SHP", _names("history human_ref_A human_ref_B labels"), None, write=Lines(
        {"prompt": "history", "response_a": "human_ref_A", "response_b": "human_ref_B", "winner": "labels"},
        (({"1": "a", "0": "b"}, ""),)), leaves=_names("upvote_ratio seconds_difference")),
    Layout("PKU-SafeRLHF", _names("prompt response_0 response_1 better_response_id"), None, write=Lines(
        {"response_a": "response_0", "response_b": "response_1", "winner": "better_response_id"}, (("index", ""),),
        when='(or winner = "safer_response_id")')),
    Layout("HelpSteer3", _names("context response1 response2 overall_preference"), None, write=Lines(
        {"prompt": "context", "response_a": "response1", "response_b": "response2", "winner": "overall_preference"},
        (("negative-is-a", ""),)), leaves=_names("individual_preference feedback1 feedback2")),
    Layout("HelpSteer2's preferences", _names("prompt response_1 response_2 preference_strength"), None, write=Lines(
        {"response_a": "response_1", "response_b": "response_2", "winner": "preference_strength"},
        (("negative-is-a", ""),)),
        leaves=_names("preference_statement preference_elaboration three_most_similar_preferences all_preferences")),
    Layout("WebGPT's comparisons", _names("question answer_0 answer_1 score_0 score_1"), None, write=Lines(
        {"prompt": "question.full_text", "response_a": "answer_0", "response_b": "answer_1", "winner": "score_0"},
        (("positive-is-a", ""),)), leaves=_names("question quotes_0 quotes_1 tokens_0 tokens_1")),
    Layout("summarize_from_feedback", _names("info summaries choice"), None, write=Lines(
        {"prompt": "info.post", "completions": "summaries", "winner": "choice"}, (("index", ""),)),
        leaves=_names("info")),
    Layout("AlpacaFarm", _names("instruction output_1 output_2 preference"), None, write=Lines(
        {"response_a": "output_1", "response_b": "output_2", "winner": "preference"},
        (({"1": "a", "2": "b"}, ""),))),
)  # fmt: skip


def layout_of(fields: Fields) -> Layout | None:
    """Find the layout of a row, or None."""
    return next((one for one in _candidates(tuple(fields.row)) if one.fits(fields)), None)


def to_be_said(fields: Fields) -> Layout | None:
    """Find the layout of a row whose verdict must be said, or None."""
    return next((one for one in TO_BE_SAID if one.needs <= fields.row.keys()), None)


@lru_cache(maxsize=256)
def _candidates(names: tuple[Any, ...]) -> tuple[Layout, ...]:
    """The layouts whose columns are there. Rows of a file have the same columns, so this is asked again and again."""
    there = set(names)
    return tuple(one for one in LAYOUTS if one.needs <= there and not one.lacks & there)
