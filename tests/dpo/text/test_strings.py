"""Plain strings: prompts that answers repeat, transcripts in a prompt, strings as messages."""

import pytest

from dpo.text.pairs import PreferencePair, read_pair
from dpo.text.rejection import Rejection
from dpo.text.strings import AS_IS, AS_MESSAGES, IN_BOTH, IN_ONE, MESSAGES, mended

Q = "Q: Which river?\nA:"
ASKED, TRANSCRIPT = {"role": "user", "content": "Which river?"}, "\n\nHuman: Which river?\n\nAssistant:"


def says(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("strings", [None, AS_IS])
def test_a_prompt_that_both_answers_repeat_is_cut(strings):
    pair = PreferencePair(Q, f"{Q} The Danube.", f"{Q} The Rhine.")
    assert mended(pair, strings) == (PreferencePair(Q, " The Danube.", " The Rhine."), (IN_BOTH,))


def test_a_prompt_that_one_answer_repeats_is_noticed():
    pair = PreferencePair(Q, f"{Q} The Danube.", " The Rhine.")
    assert mended(pair, None) == (pair, (IN_ONE,))


def test_an_answer_that_is_the_prompt_alone_is_empty():
    found = mended(PreferencePair(Q, f"{Q} The Danube.", f"{Q}\n"), None).pair
    assert found == Rejection("'rejected' has nothing behind the prompt, which it repeats", "empty side")


@pytest.mark.parametrize("ending", ["", " ", "\n"])
def test_a_transcript_in_the_prompt_is_messages(ending):
    pair = PreferencePair(TRANSCRIPT + ending, " The Danube.", " The Rhine.")
    assert mended(pair, None).pair == PreferencePair([ASKED], says("The Danube."), says("The Rhine."))
    assert mended(pair, AS_IS).pair == pair
    turns = PreferencePair(f"{TRANSCRIPT} The Danube.{TRANSCRIPT}", "Yes.", "No.")
    assert mended(turns, None).pair.prompt == [ASKED, *says("The Danube."), ASKED]


def test_transcripts_that_repeat_theirs_are_cut_and_messages():
    pair = PreferencePair(TRANSCRIPT, f"{TRANSCRIPT} The Danube.", f"{TRANSCRIPT} The Rhine.")
    found = PreferencePair([ASKED], says("The Danube."), says("The Rhine."))
    assert mended(pair, None) == (found, (IN_BOTH,))


def test_what_is_no_transcript_stays():
    for pair in (
        PreferencePair("Human: Which river?\n\nAssistant: The", " Danube.", " Rhine."),  # an answer has begun
        PreferencePair(TRANSCRIPT, " The Danube.\n\nHuman: And Basel?\n\nAssistant: No.", " The Rhine."),
        PreferencePair("The Human: a study", " a", " b"),
    ):
        assert mended(pair, None) == (pair, ())


def test_strings_as_messages():
    pair = PreferencePair("Which river?", " The Danube.", "The Rhine.")
    assert mended(pair, MESSAGES) == (
        PreferencePair([ASKED], says(" The Danube."), says("The Rhine.")),
        (AS_MESSAGES,),
    )
    chat = PreferencePair([ASKED], says("a"), says("b"))
    assert mended(chat, MESSAGES) == (chat, ())


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
def test_what_stands_beside_strings_for_a_chat_template_needs_messages(name):
    row = {"prompt": "Which river?", "chosen": " The Danube.", "rejected": " The Rhine."}
    given = [{"type": "function", "function": {"name": "find"}}] if name == "tools" else {"enable_thinking": False}
    pair = read_pair({**row, name: given})
    read = mended(pair, MESSAGES).pair
    assert read.chat and (read.tools if name == "tools" else read.options) == given
    for strings in (None, AS_IS):
        refused = mended(pair, strings).pair
        assert refused.reason.startswith(f"{name!r} need messages") and 'data.strings = "messages"' in refused.reason


def test_a_rejection_stays():
    assert mended(Rejection("no"), MESSAGES) == (Rejection("no"), ())
