"""No column that says which answer is better is believed before another that says the opposite."""

import pytest

from dpo.text.pairs import PreferencePair, read_pairs, read_row
from dpo.text.rejection import Rejection
from dpo.text.shapes import Reading

TWO_TEXTS = {"prompt": "Q", "responses": ["a", "b"]}


def inside(first, second, **more):
    return {"prompt": "Q", "completions": [{"text": "a", **first}, {"text": "b", **second}], **more}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({**TWO_TEXTS, "scores": [0.1, 0.9], "ranks": [1, 2]}, ("'scores'", "'ranks'", '["ranks"]')),
        ({**TWO_TEXTS, "scores": ["0.1", "0.9"], "ratings": ["5", "4"]}, ("'scores'", "'ratings'", '["ratings"]')),
        ({**TWO_TEXTS, "rewards": [1, 2], "winner": "a"}, ("'rewards'", "'winner'", '["winner"]')),
        (inside({"score": 5, "rating": 1}, {"score": 2, "rating": 3}), ("'completions.score'", "'completions.rating'")),
        (inside({"score": 5}, {"score": 2}, ranks=[2, 1]), ("'ranks'", "'completions.score'", '["ranks"]')),
        (inside({"rank": 1}, {"rank": 2}, scores=[1, 2]), ("'scores'", "'completions.rank'", '["scores"]')),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(row, names):
    (refused,) = read_pairs(row)
    assert isinstance(refused, Rejection) and "the opposite of each other" in refused.reason
    assert all(name in refused.reason for name in names)


def test_a_winner_that_contradicts_the_scores_is_refused_where_its_meaning_is_said():
    row = {**TWO_TEXTS, "scores": [0.1, 0.9], "winner": 0}
    (refused,) = read_row(row, Reading(verdict="index")).pairs
    assert isinstance(refused, Rejection) and "'scores' and 'winner'" in refused.reason
    assert read_row({**row, "winner": 1}, Reading(verdict="index")) == ([PreferencePair("Q", "b", "a")], ())
    assert read_row(row) == ([PreferencePair("Q", "b", "a")], ("winner",))  # counted: what 0 means is unknown


@pytest.mark.parametrize(
    "row",
    [
        {**TWO_TEXTS, "scores": [0.1, 0.9], "ranks": [2, 1]},
        {**TWO_TEXTS, "scores": [0.1, 0.9], "ratings": [3, 3]},
        {**TWO_TEXTS, "scores": [0.1, 0.9], "ratings": ["N/A", 3]},
        {**TWO_TEXTS, "scores": [0.1, 0.9], "winner": "model_b"},
        inside({"score": 2, "rating": 1}, {"score": 5, "rating": 3}),
        inside({"score": 2}, {"score": 5}, ranks=[2, 1]),
        inside({"score": None, "rating": 1}, {"score": 0, "rating": 3}),
    ],
)
def test_numbers_that_agree_or_do_not_tell_are_read(row):
    assert read_row(row) == ([PreferencePair("Q", "b", "a")], ())


def test_only_the_pairs_that_contradict_themselves_are_refused():
    row = {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [3, 2, 1], "ratings": [9, 7, 8]}
    assert read_pairs(row) == [PreferencePair("Q", "a", "c")]
    *read, third = read_pairs(row, "all")
    assert read == [PreferencePair("Q", "a", "b"), PreferencePair("Q", "a", "c")]
    assert isinstance(third, Rejection)


def test_scores_of_different_names_are_not_compared():
    (refused,) = read_pairs(inside({"score": 5}, {"rating": 9}))
    assert isinstance(refused, Rejection) and "scores of different names: score and rating" in refused.reason


@pytest.mark.parametrize(("models", "winner"), [("ba", "b"), ("ba", "a"), (("model_b", "x"), "model_b")])
def test_a_winner_that_is_the_word_for_one_answer_and_the_model_of_the_other(models, winner):
    row = {"prompt": "Q", "response_a": "a", "response_b": "b", "model_a": models[0], "model_b": models[1]}
    (refused,) = read_row({**row, "winner": winner}).pairs
    assert isinstance(refused, Rejection) and "the word for one answer and the model of the other" in refused.reason
    (pair,) = read_row({**row, "winner": winner}, Reading(verdict={winner: "b"})).pairs
    assert pair == PreferencePair("Q", "b", "a")
    (pair,) = read_row({**row, "model_a": "a", "model_b": "b", "winner": "b"}).pairs
    assert pair == PreferencePair("Q", "b", "a")


@pytest.mark.parametrize("winner", ["Tie", "tie (bothbad)", "tie_both_good", "tie-bad", "tied", "both_bad", "Neither"])
def test_words_for_a_tie(winner):
    (refused,) = read_row({"prompt": "Q", "response_a": "a", "response_b": "b", "winner": winner}).pairs
    assert isinstance(refused, Rejection) and refused.kind == "tie"


@pytest.mark.parametrize("winner", ["Tiefighter-13b", "tie fighter", "tie-fighter", "tier-1"])
def test_a_word_that_begins_like_a_tie_is_none(winner):
    row = {"prompt": "Q", "response_a": "a", "response_b": "b", "winner": winner}
    (refused,) = read_row(row).pairs
    assert isinstance(refused, Rejection) and refused.kind == "no pair"
    (pair,) = read_row({**row, "model_a": "x", "model_b": winner}).pairs
    assert pair == PreferencePair("Q", "b", "a")


@pytest.mark.parametrize("name", ["is_flipped", "flipped", "swapped", "label_flipped", "Is_Swapped"])
def test_answers_that_may_have_changed_places_are_refused_or_read_as_they_stand(name):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    for value in (True, 1, "true"):
        (refused,) = read_row({**row, name: value}).pairs
        assert isinstance(refused, Rejection) and f'data.ignore = ["{name}"]' in refused.reason
        assert read_row({**row, name: value}, Reading(ignore=(name,))).pairs == [PreferencePair("Q", "a", "b")]
    for value in (False, 0, None, "false"):
        assert read_row({**row, name: value}).pairs == [PreferencePair("Q", "a", "b")]


def test_deleted_messages_of_a_tree_are_no_part_of_it():
    def reply(text, rank, **more):
        return {"text": text, "role": "assistant", "rank": rank, **more}

    answers = [reply("a", 2), reply("b", 1), reply("c", 0, deleted=True)]
    tree = {"text": "Q", "role": "prompter", "deleted": False, "replies": answers}
    (pair,) = read_row({"prompt": tree}).pairs
    assert isinstance(pair, PreferencePair)
    assert [side[0]["content"] for side in (pair.chosen, pair.rejected)] == ["b", "a"]  # type: ignore[index]
    (refused,) = read_row({"prompt": {**tree, "deleted": True}}).pairs
    assert isinstance(refused, Rejection) and refused.kind == "tie"
    below = reply("c", 0, deleted=True, replies=[{**tree, "deleted": False}])
    (refused,) = read_row({"prompt": {**tree, "replies": [reply("a", 1), below]}}).pairs
    assert isinstance(refused, Rejection) and refused.kind == "tie"
