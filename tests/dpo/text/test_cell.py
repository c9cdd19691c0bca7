"""Messages that are written as text in cells are messages, under whatever name; other lists and objects are texts."""

import json

import pytest

from dpo.text.pairs import PreferencePair, read_row
from dpo.text.rejection import Rejection

ASKED, GOOD, BAD = ({"role": "user", "content": "It's what?"}, {"role": "assistant", "content": 'A "C".'},
                    {"role": "assistant", "content": "R\n"})  # fmt: skip
CHAT = PreferencePair([ASKED], [GOOD], [BAD])
Q, C, R = (message["content"] for message in (ASKED, GOOD, BAD))
HUMAN, GPT = {"from": "human", "value": Q}, {"from": "gpt", "value": C}
SYSTEM = {"role": "system", "content": "S"}
# Rows whose cells in a file of texts are what `write` makes of their lists and objects.
ROWS = [
    {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    {"prompt": [ASKED], "response_a": [BAD], "response_b": [GOOD], "winner": "model_b"},
    {"prompt": [ASKED], "response_a": R, "response_b": C, "winner": "model_b"},
    {"prompt": [ASKED], "completions": [{"text": C, "score": 2}, {"text": R, "score": 1}]},
    {"question": [ASKED], "responses": [R, C], "scores": [1, 2]},
    {"question": [ASKED], "chosen": C, "rejected": R},
    {"query": [ASKED], "chosen": C, "rejected": R},
    {"instruction": [ASKED], "input": "", "chosen": C, "rejected": R},
    {"messages": [ASKED, GOOD], "rejected_response": [BAD]},
    {"messages": [ASKED, GOOD], "rejected_response": R},
    {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {"chosen": [{"id": 1, **ASKED}, GOOD], "rejected": [{"id": 1, **ASKED}, BAD]},
    {"prompt": Q, "chosen": [{"weight": 1, **GOOD}], "rejected": [{"weight": 1, **BAD}]},
    {"prompt": [HUMAN], "chosen": [GPT], "rejected": [BAD]},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": R}},
    {"conversation_a": [ASKED, GOOD], "conversation_b": [ASKED, BAD], "winner": "model_a"},
    {"prompt": [Q], "response_a": [C], "response_b": [R], "winner_model_a": 1},
]


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row) for row in ROWS])
def test_messages_in_cells_are_read_as_messages(row, write):
    cells = {name: write(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}
    assert read_row(cells) == ([CHAT], ())
    spaced = {name: f"\ufeff \n{cell}" if isinstance(row[name], (list, dict)) else cell for name, cell in cells.items()}
    assert read_row(spaced) == ([CHAT], ())


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
def test_messages_in_the_texts_of_scored_answers(write):
    good, bad = write([GOOD]), write([BAD])
    for answers in ({"responses": [bad, good], "scores": [0, 1]},
                    {"completions": [{"text": bad, "score": 0}, {"text": good, "score": 1}]}):  # fmt: skip
        assert read_row({"prompt": Q, **answers}) == ([CHAT], ())


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
@pytest.mark.parametrize("system", [SYSTEM, [SYSTEM]], ids=["one", "list"])
def test_a_system_message_in_a_cell(write, system):
    row = {"system": write(system), "prompt": Q, "chosen": C, "rejected": R}
    assert read_row(row) == ([CHAT._replace(prompt=[SYSTEM, ASKED])], ())


TEXTS = [
    '{"a": 1}',
    '{"text": "C"}',
    '["pear", "fig"]',
    "['pear', 'fig']",
    '[{"value": 1}]',
    '[{"role": "captain", "name": "Ahab"}]',
    "{'role': 'user', 'content': text} is what it sends",
    "[INST] hi [/INST]",
    "{x | x > 0}",
    r"{'pattern': '\d+', 'role': 'x'}",
    "[" * 3000 + '"role"' + "]" * 3000,
    "[]",
    "{}",
    "[",
    " [a]",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_other_lists_and_objects_are_texts(text):
    assert read_row({"prompt": "Q", "chosen": text, "rejected": "R"}) == ([PreferencePair("Q", text, "R")], ())
    assert read_row({"prompt": text, "chosen": "C", "rejected": "R"}) == ([PreferencePair(text, "C", "R")], ())


def test_an_object_that_has_messages_and_more_is_an_answer():
    """Such as the request for a model, as an answer to the wish for one."""
    text = '{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    row = {"prompt": "Q", "response_a": text, "response_b": "R", "winner": "a"}
    assert read_row(row) == ([PreferencePair("Q", text, "R")], ())


NUMPY = "[{'content': 'Q', 'role': 'user'}\n {'content': 'C', 'role': 'assistant'}]"
FAULTY = [
    (NUMPY, "is a list of messages written as text that is no JSON"),
    ("[{'id': 1, " + NUMPY[2:], "is a list of messages written as text that is no JSON"),
    (json.dumps([[GOOD]]), "is a list of lists of messages written as text"),
    (json.dumps([GOOD, 1]), "entry 2 of it is no message"),
    ('[{"role": "assistant", "content": "\\ud83d"}]', "half of a surrogate pair"),
    (json.dumps([{**GOOD, "tool_calls": json.loads("[" * 80 + "]" * 80)}]), "nested too deeply"),
    (json.dumps({"messages": [GOOD]}), "no 'role' string"),
    (json.dumps([{"role": "narrator", "content": "x"}]), "none of system"),
]


@pytest.mark.parametrize(("text", "reason"), FAULTY, ids=[reason for _, reason in FAULTY])
def test_messages_that_cannot_be_read_make_the_row_a_rejection(text, reason):
    rows = [{"prompt": "Q", "chosen": text, "rejected": text}, {"chosen": text, "rejected": text},
            {"prompt": "Q", "response_a": text, "response_b": text, "winner": "a"},
            {"prompt": "Q", "responses": [text, text], "scores": [1, 2]}]  # fmt: skip
    for row in rows:
        (refused,) = read_row(row).pairs
        assert isinstance(refused, Rejection) and reason in refused.reason
    assert read_row({"prompt": "Q", "chosen": "C", "rejected": "R", "raw": text}).unread == ("raw",)


def test_one_answer_that_is_messages_beside_one_that_is_a_text():
    for names in (("chosen", "rejected"), ("response_a", "response_b")):
        row = dict(zip(names, (json.dumps([GOOD]), "R"), strict=True))
        (refused,) = read_row({"prompt": "Q", **row, "winner": "a"}).pairs
        assert isinstance(refused, Rejection) and "the other answer is not; write both alike" in refused.reason


def test_lists_of_several_texts_in_cells_are_turns_only_beside_columns_of_the_arena():
    row = {"prompt": '["pear", "fig"]', "response_a": '["a", "b"]', "response_b": '["c", "d"]', "winner": "model_a"}
    (refused,) = read_row(row).pairs
    assert isinstance(refused, Rejection) and "may be turns or the text itself" in refused.reason
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("assistant", "user", "assistant"), ("a", "fig", "b"), strict=True)
    ]
    for fuller in (
        {**row, "model_a": "m", "model_b": "n"},
        {n: json.loads(v) if v[0] == "[" else v for n, v in row.items()},
    ):
        (pair,) = read_row(fuller).pairs
        assert isinstance(pair, PreferencePair) and pair.chosen == turns


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
def test_two_lists_or_objects_have_no_common_beginning_that_is_a_prompt(write):
    for one, other in (
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}),
        (["a b", "c"], ["a b", "d"]),
        ([{"value": 1}], [{"value": 2}]),
    ):
        (refused,) = read_row({"chosen": write(one), "rejected": write(other)}).pairs
        assert isinstance(refused, Rejection) and "'prompt' must be a string" in refused.reason
