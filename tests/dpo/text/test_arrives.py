"""Each message's text stands in what the template wrote, or the row is rejected with the message that is missing."""

import pytest

from dpo.text.arrives import lost_from
from dpo.text.pairs import read_pair
from dpo.text.rejection import Rejection
from dpo.text.render import Rendered, render
from dpo.text.tokenizers import load_tokenizer


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def called(arguments):
    call = {"type": "function", "function": {"name": "find_river", "arguments": arguments}}
    return message("assistant", "", tool_calls=[call])


# A template that knows four roles, trims, and drops thoughts from all but the last turn.
TEMPLATE = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'tool') %}[{{ m.role }}]{{ m.content | trim }}"
    "{% elif m.role == 'assistant' %}[assistant]"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] | trim }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOKENIZER = load_tokenizer("bytes", chat_template=TEMPLATE)
ASKED = message("user", " Which river?\n")


def rendered(prompt, chosen, **more):
    row = {"prompt": prompt, "chosen": chosen, "rejected": [message("assistant", "None.")], **more}
    pair = read_pair(row)
    assert not isinstance(pair, Rejection), pair
    return render(TOKENIZER, pair, {})


@pytest.mark.parametrize(
    ("prompt", "chosen", "missing"),
    [
        ([message("developer", "Be brief."), ASKED], [message("assistant", "The Danube.")], "message 1 of 'prompt'"),
        ([ASKED, called({}), message("function", "Danube")], [message("assistant", "Yes.")], "message 3 of 'prompt'"),
        # a text that also stands within another one, and one that another message repeats
        (
            [message("developer", "Be brief."), message("user", "Be brief. Which river?")],
            [message("assistant", "No.")],
            "message 1 of 'prompt', whose role is 'developer'",
        ),
        (
            [ASKED],
            [message("assistant", "Hm."), message("function", "Danube"), message("assistant", "The Danube.")],
            "message 2 of 'chosen', whose role is 'function'",
        ),
    ],
)
def test_a_message_that_is_left_out_is_named(prompt, chosen, missing):
    found = rendered(prompt, chosen)
    assert isinstance(found, Rejection) and found.kind == "text lost"
    assert f"the chat template leaves out the text of {missing}" in found.reason


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ([message("system", "Be brief.\n\n"), ASKED], [message("assistant", " The Danube. ")]),
        ([ASKED, message("assistant", "<think>\nHm.\n</think>\n\nThe Danube."), ASKED], [message("assistant", "Yes.")]),
        ([ASKED], [message("assistant", "<think>\nHm.\n</think>\n\nThe Danube.")]),
        ([ASKED], [called({"town": 'Vienna "the old"\n', "year": 1999, "more": [{"à": "là"}]})]),
        ([ASKED, ASKED, ASKED], [message("assistant", "a")]),
    ],
)
def test_what_arrives_trimmed_is_not_lost(prompt, chosen):
    assert isinstance(rendered(prompt, chosen), Rendered)


def test_tools_and_calls_that_are_left_out():
    tool = {"type": "function", "function": {"name": "count_bridges", "parameters": {}}}
    found = rendered([ASKED], [message("assistant", "One.")], tools=[tool])
    assert found == Rejection("the chat template leaves out the tool 'count_bridges' of 'tools'", "text lost")
    written = "[user]Which river?[assistant]"
    assert lost_from([called({"town": "Vienna"})], written + "find_river", "chosen", False).reason == (
        "the chat template leaves out a call of message 1 of 'chosen', whose role is 'assistant': 'Vienna'"
    )


def test_many_messages_take_a_place_each():
    messages = [message("user", str(number % 10)) for number in range(3000)]
    written = "".join(f"<{each['content']}>" for each in reversed(messages))
    assert lost_from(messages, written, "prompt", True) is None
    assert lost_from([*messages, message("user", "7")], written, "prompt", True) is not None
