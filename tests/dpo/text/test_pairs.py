import pytest

from dpo.text.fields import mapped
from dpo.text.pairs import PreferencePair, read_pair, read_pairs
from dpo.text.rejection import Rejection

USER = {"role": "user", "content": "What is 2+2?"}
GOOD = {"role": "assistant", "content": "4"}
BAD = {"role": "assistant", "content": "5"}
SYSTEM = {"role": "system", "content": "Be short."}


def test_strings_are_kept_as_they_are():
    row = {"prompt": " Q: ", "chosen": "yes\n", "rejected": "no", "score": 3}
    pair = read_pair(row)
    assert pair == PreferencePair(" Q: ", "yes\n", "no")
    assert not pair.chat


def test_messages_with_a_prompt():
    pair = read_pair({"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]})
    assert pair == PreferencePair([SYSTEM, USER], [GOOD], [BAD])
    assert pair.chat


def test_messages_without_a_prompt_begin_with_it():
    """Both sides begin with system and user, so these two are the prompt."""
    pair = read_pair({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]})
    assert pair == PreferencePair([SYSTEM, USER], [GOOD], [BAD])


def test_the_last_message_never_belongs_to_the_implicit_prompt():
    """Turn one (user, assistant) is shared too, but a side keeps at least its last message."""
    shared = [USER, GOOD, USER]
    pair = read_pair({"chosen": [*shared, GOOD, BAD], "rejected": [*shared, GOOD]})
    assert pair == PreferencePair(shared, [GOOD, BAD], [GOOD])


@pytest.mark.parametrize("prompt", [[USER], USER["content"]])
@pytest.mark.parametrize("chosen", [[GOOD], GOOD])
def test_a_side_may_be_one_message_and_a_chat_prompt_a_string(prompt, chosen):
    assert read_pair({"prompt": prompt, "chosen": chosen, "rejected": [BAD]}) == PreferencePair([USER], [GOOD], [BAD])


def test_a_conversation_answered_with_plain_texts():
    assert read_pair({"prompt": [USER], "chosen": "4", "rejected": "5"}) == PreferencePair([USER], [GOOD], [BAD])


def test_only_role_and_content_of_a_message_are_kept():
    pair = read_pair({"prompt": [{**USER, "loss_weight": 0.0}], "chosen": [GOOD], "rejected": [BAD]})
    assert pair.prompt == [USER]


FROM_USER = {"from": "human", "value": USER["content"]}
FROM_GOOD, FROM_BAD = ({"from": "gpt", "value": message["content"]} for message in (GOOD, BAD))
TRANSCRIPT = "\n\nHuman: What is 2+2?\n\nAssistant: 5\n\nHuman: No:\n\nHuman error?\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 9.0},
        {"conversations": [FROM_USER], "chosen": FROM_GOOD, "rejected": FROM_BAD},
        {"conversations": [FROM_USER], "chosen": [FROM_GOOD], "rejected": [FROM_BAD]},
        {"conversations": [FROM_USER], "chosen": "4", "rejected": "5"},
        {
            "prompt": [
                {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "value": "2+2?"}]}
            ],
            "chosen": [GOOD],
            "rejected": [{"role": "assistant", "content": ["5"]}],
        },
        {"chosen": "\n\nHuman: What is 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: What is 2+2?\n\nAssistant: 5"},
        {"prompt": [USER], "response_a": "4", "response_b": "5", "winner": "model_a"},
        {"prompt": [USER], "response_a": "5", "response_b": "4", "winner": "B"},
        {
            "prompt": [USER],
            "response_a": "5",
            "response_b": "4",
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
    ],
)
def test_every_shape_is_read_as_the_same_pair(row):
    assert read_pair(row) == PreferencePair([USER], [GOOD], [BAD])


def test_a_prompt_that_the_sides_repeat_takes_its_system_message_along():
    row = {"prompt": USER["content"], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    assert read_pair(row) == PreferencePair([SYSTEM, USER], [GOOD], [BAD])


def test_whole_conversations_may_lack_the_system_message_of_the_prompt():
    row = {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert read_pair(row) == PreferencePair([SYSTEM, USER], [GOOD], [BAD])
    later = [USER, GOOD, {"role": "user", "content": "And 3+3?"}]
    row = {"prompt": [SYSTEM, USER], "chosen": [*later, GOOD], "rejected": [*later, BAD]}
    assert read_pair(row) == PreferencePair([SYSTEM, *later], [GOOD], [BAD])


def test_a_prompt_may_be_the_first_message_of_a_longer_conversation():
    later = [USER, GOOD, {"role": "user", "content": "And 3+3?"}]
    row = {"prompt": USER["content"], "chosen": [*later, GOOD], "rejected": [*later, BAD]}
    assert read_pair(row) == PreferencePair(later, [GOOD], [BAD])


def test_both_answers_may_begin_alike():
    """The prompt ends where somebody asks; what the assistant says in both answers belongs to them."""
    row = {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}
    assert read_pair(row) == PreferencePair([USER, GOOD, USER], [GOOD], [BAD])
    row = {"chosen": [USER, GOOD, GOOD], "rejected": [USER, GOOD, BAD]}
    assert read_pair(row) == PreferencePair([USER], [GOOD, GOOD], [GOOD, BAD])


def test_columns_of_other_names():
    row = {"question": "Q", "answers": {"best": "a", "worst": "b"}, "id": 7}
    columns = {"prompt": "question", "chosen": "answers.best", "rejected": "answers.worst"}
    assert read_pair(mapped(row, columns)) == PreferencePair("Q", "a", "b")
    assert mapped({"question": "Q"}, columns) == Rejection(
        "no column 'answers.best', which data.columns.chosen names (the row has: question)"
    )


def test_a_prompt_of_its_own_is_kept_where_the_sides_begin_alike():
    """Two answers whose first message is the same: it belongs to the answer, not to the prompt."""
    row = {"prompt": [USER], "chosen": [GOOD, BAD], "rejected": [GOOD, GOOD]}
    assert read_pair(row) == PreferencePair([USER], [GOOD, BAD], [GOOD, GOOD])


def test_a_transcript_is_split_at_its_last_common_turn():
    """A blank line and a speaker's name begin a turn; "Human" without a colon is text."""
    pair = read_pair({"chosen": TRANSCRIPT + "4", "rejected": TRANSCRIPT + "Six.\n\nOr so."})
    asked = {"role": "user", "content": "No:\n\nHuman error?"}
    assert pair.prompt == [USER, BAD, asked]
    assert pair.chosen == [{"role": "assistant", "content": "4"}]
    assert pair.rejected == [{"role": "assistant", "content": "Six.\n\nOr so."}]


def test_strings_that_only_mention_a_human_are_no_transcript():
    row = {"prompt": "Q", "chosen": "Human: hi", "rejected": "Human: ho"}
    assert read_pair(row) == PreferencePair("Q", "Human: hi", "Human: ho")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "a row must be an object with prompt, chosen and rejected, not a string"),
        (None, "not null"),
        ({}, "no 'chosen' (the row has: nothing)"),
        ({"prompt": "a", "chosen": "b"}, "no 'rejected' (the row has: prompt, chosen)"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, "no 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, "'prompt' must be a string or a list of messages, not null"),
        (
            {"prompt": 7, "chosen": "b", "rejected": "c"},
            "'prompt' must be a string or a list of messages, not a number",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "of one kind, they are a string and a list"),
        ({"prompt": "a", "chosen": GOOD, "rejected": "c"}, "of one kind, they are an object and a string"),
        ({"prompt": "a", "chosen": 1, "rejected": 2}, "'chosen' must be a string or a list of messages, not a number"),
        ({"prompt": " \n", "chosen": "b", "rejected": "c"}, "'prompt' is empty"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "'chosen' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "do not begin with the same user message"),
        ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "'chosen' has no answer after the prompt"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [{**BAD, "content": " "}]}, "'rejected' has no answer"),
        (
            {"prompt": [USER], "chosen": [USER], "rejected": [BAD]},
            "'chosen' must begin and end with an assistant message",
        ),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, "chosen and rejected are the same"),
        (
            {"prompt": [USER], "chosen": ["4"], "rejected": [BAD]},
            "message 1 of 'chosen' must be an object, not a string",
        ),
        (
            {"prompt": [USER, {"role": "user"}], "chosen": [GOOD], "rejected": [BAD]},
            "message 2 of 'prompt' has no 'content'",
        ),
        (
            {"prompt": [{"content": "a"}], "chosen": [GOOD], "rejected": [BAD]},
            "message 1 of 'prompt' has no 'role' string",
        ),
        (
            {"prompt": [USER], "chosen": [{"role": "assistant", "content": 4}], "rejected": [BAD]},
            "message 1 of 'chosen' has no 'content' string",
        ),
        (
            {"prompt": [USER], "chosen": [{"role": "assistant", "content": [{"type": "text"}]}], "rejected": [BAD]},
            "message 1 of 'chosen' has a part that is not text: 1 of 1",
        ),
        (
            {
                "prompt": [USER],
                "chosen": [GOOD],
                "rejected": [{"role": "assistant", "content": ["a", {"type": "image"}]}],
            },
            "message 1 of 'rejected' has a part that is not text: 2 of 2",
        ),
        ({"conversations": [{"from": 1, "value": "a"}], "chosen": "b", "rejected": "c"}, "has no 'from' string"),
        ({"conversations": [{"from": "human"}], "chosen": "b", "rejected": "c"}, "has no 'value' string"),
        (
            {"response_a": "a", "response_b": "b", "prompt": "p"},
            "need a 'winner' that says which is better, it is None",
        ),
        ({"response_a": "a", "response_b": "b", "winner": "tie"}, "a tie ('tie') expresses no preference"),
        ({"response_a": "a", "response_b": "b", "winner": "tie (bothbad)"}, "expresses no preference"),
        ({"response_a": "a", "response_b": "b", "winner": "c"}, "'winner' must name one of 'response_a'"),
        (
            {"response_a": "a", "response_b": "b", "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
            "a tie ('tie') expresses no preference",
        ),
        ({"response_a": "a", "response_b": "b", "winner_model_a": 1, "winner_model_b": 1}, "it is None"),
    ],
)
def test_a_bad_row_says_why(row, reason):
    rejection = read_pair(row)
    assert isinstance(rejection, Rejection)
    assert reason in rejection.reason


# Rows with a list of scored answers

SCORED = [("a", "3"), ("b", 5.0), ("c", 3), ("d", "1.0")]
OBJECTS = {"prompt": "Q", "completions": [{"text": text, "score": score} for text, score in SCORED]}
LISTS = {"prompt": "Q", "responses": list("abcd"), "scores": [3, 5, 3, 1]}
RANKS = {"question": "Q", "completions": list("abcd"), "ranks": [2, 1, 2, 3]}
ULTRA = {
    "instruction": "Q",
    "completions": [{"response": text, "overall_score": score} for text, score in SCORED],
}


def sides(pairs):
    assert all(pair.prompt == "Q" for pair in pairs)
    return [(pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize("row", [OBJECTS, LISTS, RANKS, ULTRA])
def test_the_best_answer_against_the_worst(row):
    assert sides(read_pairs(row)) == [("b", "d")]


@pytest.mark.parametrize("row", [OBJECTS, LISTS, RANKS, ULTRA])
def test_every_answer_against_every_worse_one(row):
    """Two answers of equal score, 3, are no pair."""
    assert sides(read_pairs(row, "all")) == [("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")]


def test_answers_must_differ_by_more_than_the_margin():
    assert sides(read_pairs(OBJECTS, "all", margin=2.0)) == [("b", "d")]
    (rejection,) = read_pairs(OBJECTS, "best_worst", margin=4.0)
    assert rejection == Rejection("no two of its 4 answers differ in score by more than 4", "tie")


def test_answers_may_be_messages():
    row = {"prompt": [USER], "completions": [{"messages": [BAD], "score": 0}, {"messages": [GOOD], "score": 1}]}
    assert read_pairs(row) == [PreferencePair([USER], [GOOD], [BAD])]


def test_another_row_is_one_pair():
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "completions": [1]}
    assert read_pairs(row) == [PreferencePair("Q", "a", "b")]
    assert read_pairs(7) == [read_pair(7)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"completions": [{"text": "a", "score": "N/A"}]},
            "answer 1 of 'completions' has no score that is a number, but 'N/A'",
        ),
        ({"completions": [{"text": "a"}]}, "no score that is a number, but None"),
        ({"completions": ["a"]}, "no score that is a number, but None"),
        ({"completions": ["a"], "scores": [float("nan")]}, "but nan"),
        ({"completions": ["a"], "scores": [True]}, "but True"),
        ({"completions": ["a", "b"], "scores": [1]}, "'completions' has 2 answers and 'scores' 1 values"),
        ({"completions": []}, "'completions' has no answers"),
        ({"prompt": "Q", "responses": ["a", None], "scores": [1, 0]}, "no 'rejected'"),
        ({"responses": ["a", "b"], "scores": [1, 0]}, "'prompt' must be a string"),
    ],
)
def test_a_bad_list_of_answers_says_why(row, reason):
    (rejection,) = read_pairs(row)
    assert isinstance(rejection, Rejection)
    assert reason in rejection.reason
