"""Numbers that a row has for its two answers: the doctor says where they contradict the preference."""

import pytest

from dpo.text.pairs import PreferencePair, read_row
from dpo.text.shapes import Reading
from pipeline.data.noticed import LISTS, noticed_in
from pipeline.data.scores import CONTRADICT, EQUAL

PAIR = {"prompt": "Q:", "chosen": " a", "rejected": " b"}
TWO = {"prompt": "Q:", "response_a": " b", "response_b": " a", "winner": "b"}
CHAT = {"prompt": "Q:", "chosen": {"role": "assistant", "content": "a"}, "rejected": [{"from": "gpt", "value": "b"}]}
SHP = {"history": "Q:", "human_ref_A": " b", "human_ref_B": " a", "labels": 0}
OF_SHP = Reading(
    {"prompt": "history", "response_a": "human_ref_A", "response_b": "human_ref_B", "winner": "labels"},
    {"1": "a", "0": "b"},
)


def noticed(row, reading=Reading()):  # noqa: B008
    (pair,) = read_row(row, reading).pairs
    assert isinstance(pair, PreferencePair)
    return [*noticed_in(row, pair)]


# Names of the two numbers, that of the chosen answer first, and whether the higher is better.
NAMES = [
    ("score_chosen", "score_rejected", True),
    ("chosen-rating", "rejected-rating", True),
    ("chosenScore", "rejectedScore", True),
    ("chosen_avg_rating", "rejected_avg_rating", True),
    ("rm_score_chosen", "rm_score_rejected", True),
    ("preferred_reward", "dispreferred_reward", True),
    ("chosen_rank", "rejected_rank", False),
    ("Chosen_Ranking", "Rejected_Ranking", False),
]


@pytest.mark.parametrize(("first", "second", "higher"), NAMES)
@pytest.mark.parametrize("write", [int, float, str])
def test_numbers_of_chosen_and_rejected(first, second, higher, write):
    good, bad = (write(2), write(1)) if higher else (write(1), write(2))
    assert noticed({**PAIR, first: good, second: bad}) == []
    assert noticed({**PAIR, first: bad, second: good}) == [CONTRADICT]
    assert noticed({**CHAT, first: bad, second: good}) == [CONTRADICT]
    assert noticed({**PAIR, first: good, second: good}) == [EQUAL]


def test_numbers_in_an_object():
    for name in ("scores", "ratings"):
        assert noticed({**PAIR, name: {"chosen": 2, "rejected": 1}}) == []
        assert noticed({**PAIR, name: {"chosen": 1, "rejected": 2}}) == [CONTRADICT]
        assert noticed({**PAIR, name: '{"chosen": 1, "rejected": "2.5"}'}) == [CONTRADICT]
    assert noticed({**PAIR, "metadata": {"chosen_score": 1, "rejected_score": 2}}) == [CONTRADICT]


def test_numbers_of_answers_that_are_named_by_their_place():
    assert noticed({**TWO, "score_a": 1, "score_b": 2}) == []
    assert noticed({**TWO, "score_a": 2, "score_b": 1}) == [CONTRADICT]
    assert noticed({**TWO, "rank_a": 1, "rank_b": 2}) == [CONTRADICT]
    assert noticed({**SHP, "score_A": 4, "score_B": 9}, OF_SHP) == []
    assert noticed({**SHP, "score_A": "9", "score_B": "4"}, OF_SHP) == [CONTRADICT]
    assert noticed({**PAIR, "score_a": 1, "score_b": 2}) == []  # of which answer is unknown


@pytest.mark.parametrize(
    "more",
    [
        {"chosen_toxicity_score": 1, "rejected_toxicity_score": 2},
        {"chosen_length": 1, "rejected_length": 2},
        {"score_chosen": True, "score_rejected": 2},
        {"score_chosen": "good", "score_rejected": 2},
        {"score_chosen": None, "score_rejected": 2},
        {"score_chosen": 1},
        {"chosen_score": 2, "rejected_score": 2, "chosen_rank": 1, "rejected_rank": 2},
    ],
)
def test_numbers_that_say_nothing_of_the_preference(more):
    assert noticed({**PAIR, **more}) == []


@pytest.mark.parametrize("text", ['["a", 1]', "['a', 1]", ' [{"a": 1}]', '{"text": "a"}', "{'content': 'a'}"])
def test_answers_that_look_like_lists_or_objects(text):
    row = {"prompt": "Q:", "chosen": text, "rejected": text.replace("a", "b")}
    assert noticed(row) == [LISTS]
    assert noticed({**row, "prompt": [{"role": "user", "content": "Q"}]}) == [LISTS]
    assert noticed({**row, "rejected": " b"}) == []


@pytest.mark.parametrize("text", ['{"a": 1}', "[INST] a", " [a]", "{a}", "[1, 'a']"])
def test_answers_that_begin_with_a_bracket(text):
    assert noticed({"prompt": "Q:", "chosen": text, "rejected": text.replace("a", "b")}) == []
