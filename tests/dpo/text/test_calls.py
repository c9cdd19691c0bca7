"""Calls, tools and thoughts of any spelling are one form, and templates get them as they read them."""

import json

import pytest

from dpo.text.calls import normal_calls, normal_tools
from dpo.text.pairs import read_pair
from dpo.text.rejection import Rejection
from dpo.text.render import render
from dpo.text.template import Template
from dpo.text.tokenizers import load_tokenizer

ASKED = {"role": "user", "content": "Which river?"}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"town": "Vienna"}}}
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}},
}


def call(arguments, **more):
    return {"type": "function", "function": {"name": "find", "arguments": arguments}, **more}


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [call('{"town": "Vienna"}')],
        json.dumps([CALL]),
        [json.dumps(CALL)],
        [json.dumps(call('{"town": "Vienna"}'))],
        [{"type": "function", "function": json.dumps(CALL["function"])}],
        [call({"town": "Vienna", "river": None}, id=None)],
    ],
)
def test_calls_have_one_form(calls):
    assert normal_calls(calls) == [CALL]


def test_arguments_that_are_none_and_text_that_is_not_json():
    assert [c["function"]["arguments"] for c in normal_calls([call(None), call(""), call({"a": None})])] == [{}] * 3
    assert normal_calls([call('{"town": ')]) == [call('{"town": ')]  # a model's own mistake is kept
    assert normal_calls([call('{"town": null}')]) == [call({"town": None})]  # no column adds nulls to a text
    assert normal_calls([call('{"town": "\\ud83e"}')])[0]["function"]["arguments"] == '{"town": "\\ud83e"}'


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{"type": "function", "function": json.dumps(TOOL["function"])}],
        [{**TOOL, "function": {**TOOL["function"], "parameters": json.dumps(TOOL["function"]["parameters"])}}],
        [
            {
                **TOOL,
                "strict": None,
                "function": {
                    **TOOL["function"],
                    "parameters": {
                        "type": "object",
                        "required": None,
                        "properties": {"town": {"type": "string", "items": None}, "river": None},
                    },
                },
            }
        ],
        [
            {
                **TOOL,
                "function": {
                    **TOOL["function"],
                    "parameters": {"type": "object", "properties": '{"town": {"type": "string"}}'},
                },
            }
        ],
    ],
)
def test_tools_have_one_form(tools):
    assert normal_tools(tools) == [TOOL]


def test_nulls_that_are_values_stay():
    schema = {"type": "string", "enum": ["a", None], "default": None, "const": None, "description": None}
    named = {"default": None, "enum": {"type": "string", "title": None}}
    tool = {"name": "f", "parameters": {"properties": {"x": schema, **named}}}
    (found,) = normal_tools([tool])
    x = {"type": "string", "enum": ["a", None], "default": None, "const": None}
    assert found == {"name": "f", "parameters": {"properties": {"x": x, "enum": {"type": "string"}}}}


JOINS = "{{ c.function.name + ' ' + c.function.arguments }}"
PRINTS = "{{ c.function.name }} {{ c.function.arguments }}"
AS_JSON = "{{ c.function | tojson }}"


def template(writes, thoughts=""):
    text = (
        "{% for m in messages %}[{{ m.role }}]" + thoughts + "{{ m.content }}"
        "{% for c in m.tool_calls or [] %}" + writes + "{% endfor %};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return load_tokenizer("bytes", chat_template=text)


def chosen(tokenizer, message, **more):
    row = {"prompt": [ASKED], "chosen": [message], "rejected": [{"role": "assistant", "content": "No."}], **more}
    pair = read_pair(row)
    assert not isinstance(pair, Rejection), pair
    found = render(tokenizer, pair, {})
    return found.reason if isinstance(found, Rejection) else "".join(span.text for span in found.chosen)


@pytest.mark.parametrize("arguments", [{"town": "Vienna"}, '{"town": "Vienna"}', {"town": "Vienna", "river": None}])
@pytest.mark.parametrize(
    ("writes", "text", "written"),
    [
        (JOINS, True, 'find {"town": "Vienna"};'),
        (PRINTS, True, 'find {"town": "Vienna"};'),
        (AS_JSON, False, '{"name": "find", "arguments": {"town": "Vienna"}};'),
    ],
)
def test_a_template_gets_arguments_as_it_writes_them(writes, text, written, arguments):
    tokenizer = template(writes)
    assert Template(tokenizer, {}).wants_text is text
    message = {"role": "assistant", "content": None, "tool_calls": [call(arguments)]}
    assert chosen(tokenizer, message) == written


@pytest.mark.parametrize("given", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_reach_the_template_under_the_name_that_it_reads(given, read):
    tokenizer = template(AS_JSON, "{% if m." + read + " %}<think>{{ m." + read + " }}</think>{% endif %}")
    message = {"role": "assistant", "content": "The Danube.", given: "It is Vienna."}
    assert chosen(tokenizer, message) == "<think>It is Vienna.</think>The Danube.;"


def test_thoughts_that_no_template_reads_are_a_rejection():
    message = {"role": "assistant", "content": "The Danube.", "thinking": "It is Vienna."}
    said = chosen(template(AS_JSON), message)
    assert "message 1 of 'chosen' has thoughts" in said and "<think>…</think>" in said
    differing = {**message, "reasoning": "It is Linz."}
    row = {"prompt": "Q", "chosen": [differing], "rejected": [message]}
    assert read_pair(row).reason == "message 1 of 'chosen' has 'reasoning' and 'thinking', which differ"


def test_answers_that_differ_in_their_thoughts_alone_are_a_pair():
    sides = {
        side: [{"role": "assistant", "content": "The Danube.", "reasoning": f"As {side}."}]
        for side in ("chosen", "rejected")
    }
    assert not isinstance(read_pair({"prompt": "Q", **sides}), Rejection)


def test_options_of_a_row_reach_the_template():
    tokenizer = load_tokenizer("bytes", chat_template="{% for m in messages %}{{ m.content }}{{ mood }};{% endfor %}")
    row = {"prompt": [ASKED], "chosen": "a", "rejected": "b", "chat_template_kwargs": {"mood": "!", "other": None}}
    pair = read_pair(row)
    assert pair.options == {"mood": "!"}
    assert render(tokenizer, pair, {"mood": "?"}).prompt == "Which river?!;"
    assert render(tokenizer, pair._replace(options=None), {"mood": "?"}).prompt == "Which river??;"
    assert read_pair({**row, "chat_template_kwargs": '{"mood": "!"}'}).options == {"mood": "!"}
    for wrong in ("high", {"tokenize": True}):
        assert isinstance(read_pair({**row, "chat_template_kwargs": wrong}), Rejection)
