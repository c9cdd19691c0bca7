import pytest

from dpo.pairs import PreferencePair, Rejection, read_pair

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
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "do not begin with the same message"),
        ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "'chosen' has no answer after the prompt"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [{**BAD, "content": " "}]}, "'rejected' has no answer"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "'chosen' must answer with assistant messages only"),
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
            {"prompt": [USER], "chosen": [{"role": "assistant", "content": [{"type": "text"}]}], "rejected": [BAD]},
            "message 1 of 'chosen' has no 'content' string",
        ),
    ],
)
def test_a_bad_row_says_why(row, reason):
    rejection = read_pair(row)
    assert isinstance(rejection, Rejection)
    assert reason in rejection.reason
