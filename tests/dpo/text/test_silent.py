"""Rows that could be read wrongly without a word: each is read as its author means it, refused, or counted."""

import pytest

from dpo.text.fields import holds_text
from dpo.text.pairs import PreferencePair, read_row
from dpo.text.rejection import Rejection
from dpo.text.render import Rendered, render
from dpo.text.shapes import Reading
from dpo.text.strings import IN_BOTH, MESSAGES, mended
from dpo.text.tokenizers import CHATML, byte_tokenizer

YES, NO = "It is the Danube.", "It is the Rhine."
Q = "Which river is the longest?"
PLAIN = {"prompt": Q, "chosen": YES, "rejected": NO}


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def only(row, **reading):
    (pair,) = read_row(row, Reading(**reading)).pairs
    return pair


# Columns beside the pair


@pytest.mark.parametrize(
    ("prompt", "chosen", "name", "value"),
    [
        ("Is this number prime?", "Yes, 7 is prime.", "input", "7"),
        ("Is 17 prime?", "Yes.", "input", "7"),
        ("And then?", "Hi Hello cho1", "history", [["Hi", "Hello"]]),
        ("Which city is it?", "It lies on the Seine. So Paris.", "context", "It lies on the Seine."),
        ("7", "Double is 14", "instruction", "Double"),
        ("Which city?", "Paris, as the guide says.", "documents", ["the guide says"]),
        ("Which city?", "So Paris.", "messages", [user("A city on the Seine.")]),
        ("Which city?", "Paris, of course", "reasoning", "The Seine flows there."),
        ("Which city?", "Paris, of course", "prefill", "of course"),
    ],
)
def test_what_stands_in_an_answer_by_chance_is_lost_all_the_same(prompt, chosen, name, value):
    refused = only({"prompt": prompt, "chosen": chosen, "rejected": "No.", name: value})
    assert refused.kind == "unread column" and repr(name) in refused.reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("question", Q),
        ("context", "longest?"),
        ("messages", [user(Q), said(YES)]),
        ("prefill", "It is"),
        ("reasoning", "the Danube"),
    ],
)
def test_what_stands_where_it_belongs_is_not_lost(name, value):
    assert read_row({**PLAIN, name: value}) == ([PreferencePair(Q, YES, NO)], ())


@pytest.mark.parametrize(
    "name",
    ["previous_turns", "turns", "chat_history", "systemPrompt", "sys_prompt", "preamble", "custom_system_prompt"],
)
def test_other_names_of_what_changes_the_text_are_refused(name):
    refused = only({**PLAIN, name: "Speak as a pirate does."})
    assert refused.kind == "unread column" and f'data.ignore = ["{name}"]' in refused.reason


@pytest.mark.parametrize(
    ("name", "value"), [("previous_turns", [["q", "a"]]), ("image_url", "http://x/i.png"), ("turns", ["q"])]
)
def test_so_are_they_where_their_values_are_short(name, value):
    assert only({**PLAIN, name: value}).kind == "unread column"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "Rewrite it as a pirate would say it"),
        ("source", "Guten Tag."),
        ("model_instruction", "Be brief."),
        ("n_shot_examples", ["one is odd", "two is even"]),
        ("is_context", "It lies on the Seine."),
        ("score_rubric", "Five points for wit."),
        ("policy", "Never name a city."),
        ("meta", {"persona": "a pirate"}),
        ("metadata", [{"system": "Be brief."}]),
        ("metadata", {"conv": {"system": "Be brief."}}),
    ],
)
def test_texts_under_the_name_of_metadata_are_counted(name, value):
    assert read_row({**PLAIN, name: value}) == ([PreferencePair(Q, YES, NO)], (name,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "ultrachat"),
        ("turn", 1),
        ("num_turns", 3),
        ("turns", 2),
        ("is_context", False),
        ("task", "summarization"),
        ("models", ["gpt-4", "llama"]),
        ("metadata", {"language": "English", "toxicity": 0.1, "tags": ["a", "b"]}),
        ("timestamp", "12 March 2023 10:00"),
        ("url", "https://example.org/a"),
        ("license", "Creative Commons 4.0"),
    ],
)
def test_metadata_is_not_counted(name, value):
    assert read_row({**PLAIN, name: value}) == ([PreferencePair(Q, YES, NO)], ())
    assert not holds_text(name, value)


def test_further_fields_of_messages_and_their_parts():
    part = {"type": "text", "text": Q, "context": "It lies on the Seine."}
    row = {
        "prompt": [{**user([part]), "source": "Guten Tag allerseits."}],
        "chosen": [said(YES)],
        "rejected": [said(NO)],
    }
    found = read_row(row)
    assert found.pairs[0].prompt == [user(Q)]
    assert set(found.unread) == {"prompt[].source", "prompt[].content[].context"}


@pytest.mark.parametrize("name", ["images", "image", "audios"])
def test_media_in_a_message_are_refused(name):
    refused = only({"prompt": [{**user(Q), name: ["a.png"]}], "chosen": [said(YES)], "rejected": [said(NO)]})
    assert f"has {name!r}; ray-align trains on text alone" in refused.reason and refused.kind == "images"


def test_thoughts_in_a_part_as_gemini_marks_them():
    answer = {"role": "model", "parts": [{"text": "Rivers.", "thought": True}, {"text": YES}]}
    pair = only({"prompt": [user(Q)], "chosen": [answer], "rejected": [said(NO)]})
    assert pair.chosen == [{**said(YES), "reasoning_content": "Rivers."}]


# Transcripts


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Human: Q one. Assistant:", [user("Q one.")]),
        ("Human: hi\nAssistant: yo\nHuman: Q\nAssistant:", [user("hi"), said("yo"), user("Q")]),
        ("Human: hi Assistant: yo Human: Q Assistant:", [user("hi"), said("yo"), user("Q")]),
        ("\n\nHuman: Q\n\nAI:", [user("Q")]),
        ("User: Q\nAssistant:", [user("Q")]),
        ("System: S\n\nHuman: Q\n\nAssistant:", [{"role": "system", "content": "S"}, user("Q")]),
        ("\n\nHuman: Say 'Assistant: x'\n\nAssistant:", [user("Say 'Assistant: x'")]),
    ],
)
def test_transcripts_with_other_labels_and_gaps(prompt, asked):
    pair = read_row({"prompt": prompt, "chosen": " C", "rejected": " R"}).pairs[0]
    for strings in (None, MESSAGES):
        assert mended(pair, strings).pair == PreferencePair(asked, [said("C")], [said("R")])


@pytest.mark.parametrize(
    ("beside", "chosen", "rejected"),
    [
        ({"system": "S"}, " C", " R"),
        ({}, [said("C")], [said("R")]),
        ({"system": "S"}, [said("C")], [said("R")]),
    ],
)
def test_a_transcript_loses_its_labels_also_where_something_makes_it_messages(beside, chosen, rejected):
    pair = only({"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": chosen, "rejected": rejected, **beside})
    system = [{"role": "system", "content": "S"}] if beside else []
    assert pair[:3] == ([*system, user("Q")], [said("C")], [said("R")])


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [("\n\nHuman: Q\n\nAssistant: Sure,", " C"), ("\n\nHuman: Q\n\nAssistant:", " C\n\nHuman: more?\n\nAssistant: D")],
)
def test_where_strings_become_messages_an_unclear_transcript_is_rejected(prompt, chosen):
    pair = PreferencePair(prompt, chosen, " R")
    assert mended(pair, None).pair == pair
    refused = mended(pair, MESSAGES).pair
    assert isinstance(refused, Rejection) and refused.kind == "transcript"
    read = only({"system": "S", "prompt": "\n\nHuman: Q\n\nAssistant: Sure,", "chosen": " C", "rejected": " R"})
    assert isinstance(read, Rejection) and read.kind == "transcript"


@pytest.mark.parametrize("prompt", ["Q", "Q ", "Human: Q\n\nAssistant:", [user("Q")]])
@pytest.mark.parametrize("names", [("prompt", "chosen", "rejected"), ("instruction", "chosen", "rejected")])
def test_answers_that_are_whole_transcripts_have_their_prompt_once(prompt, names):
    sides = [f"\n\nHuman: Q\n\nAssistant: {text}" for text in "CR"]
    pair = only(dict(zip(names, (prompt, *sides), strict=True)))
    assert pair == PreferencePair([user("Q")], [said("C")], [said("R")])


def test_so_have_those_of_two_answers_with_a_winner():
    sides = [f"\n\nHuman: Q\n\nAssistant: {text}" for text in "CR"]
    pair = only({"prompt": "Q", "response_a": sides[0], "response_b": sides[1], "winner": "b"})
    assert pair == PreferencePair([user("Q")], [said("R")], [said("C")])


def test_whole_transcripts_behind_another_prompt_are_refused_with_the_line_that_reads_them():
    sides = {side: f"\n\nHuman: Q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    refused = only({"prompt": "Be a pirate.", **sides})
    assert "do not begin with the prompt" in refused.reason and 'data.ignore = ["prompt"]' in refused.reason
    pair = only({"prompt": "Be a pirate.", **sides}, ignore=("prompt",))
    assert pair == PreferencePair([user("Q")], [said("chosen")], [said("rejected")])


# Prompts from answers, and answers with prompts


@pytest.mark.parametrize("name", ["prompt", "question", "instruction", "messages"])
@pytest.mark.parametrize("beside", [{}, {"system": "S"}])
def test_a_null_prompt_is_not_made_of_the_answers(name, beside):
    row = {name: None, "chosen": "I think that A.", "rejected": "I think that B.", **beside}
    assert f"{name!r} is null" in only(row).reason or "null" in only(row).reason
    assert isinstance(only(row), Rejection)


def test_nor_is_one_that_stands_under_another_name():
    assert isinstance(only({"source": "Guten Tag.", "chosen": "Good day.", "rejected": "Good bye."}), Rejection)


@pytest.mark.parametrize("row", [{"system": "S", "prompt": Q}, {"prompt": [user(Q)]}])
def test_messages_that_repeat_the_question_are_cut(row):
    pair = only({**row, "chosen": f"{Q} {YES}", "rejected": f"{Q} {NO}"})
    found = mended(pair, None)
    assert found.noticed == (IN_BOTH,)
    assert [side[0]["content"] for side in found.pair[1:3]] == [f" {YES}", f" {NO}"]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hello", "Hello! How can I help?", "Hello there."),
        ("Hi", "High five", "Hi"),
        ("Good morning", "Good morning! Coffee?", "Good mornings are rare."),
    ],
)
def test_an_answer_that_only_begins_like_its_prompt_stays(prompt, chosen, rejected):
    pair = PreferencePair(prompt, chosen, rejected)
    assert mended(pair, None).pair == pair


@pytest.mark.parametrize(("value", "lost"), [("Speak as a pirate does.", True), ("high", False), (True, False)])
def test_a_text_among_the_options_that_the_template_does_not_read_is_lost(value, lost):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    row = {"prompt": [user(Q)], "chosen": [said(YES)], "rejected": [said(NO)]}
    found = render(tokenizer, only({**row, "chat_template_kwargs": {"custom_instructions": value}}), {})
    assert isinstance(found, Rejection) == lost
    tokenizer.chat_template = "{{ custom_instructions or '' }}" + CHATML
    assert isinstance(
        render(tokenizer, only({**row, "chat_template_kwargs": {"custom_instructions": value}}), {}), Rendered
    )
