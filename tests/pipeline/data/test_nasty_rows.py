"""Rows and files as nobody should write them, each with what becomes of it: used with its text kept, or rejected."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo.text.tokenizers import load_tokenizer
from pipeline.data.rows import read_rows
from tests.pipeline.stages.test_prepare import rejections, rows_of, tokenized

pytestmark = pytest.mark.slow

TOKENIZER = load_tokenizer("bytes", chat_template="chatml")
ROOM = 4_000_000  # tokens: nothing here is cut


# How rows are written


def row(**fields):
    return json.dumps(fields, ensure_ascii=False).encode()


def pair(prompt="p", chosen="c", rejected="r", **more):
    return row(prompt=prompt, chosen=chosen, rejected=rejected, **more)


def user(content):
    return {"role": "user", "content": content}


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def chat(prompt=None, chosen="c", rejected="r", **more):
    """A row of messages; a side that is a string is what the assistant said."""
    sides = [[said(side)] if isinstance(side, str) else side for side in (chosen, rejected)]
    return pair([user("q")] if prompt is None else prompt, *sides, **more)


def turned(role, content):
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def asked(*turns):
    """What the template writes for a prompt of (role, content)."""
    return "".join(turned(*turn) for turn in turns) + "<|im_start|>assistant\n"


def answered(chosen="c", rejected="r", prompt=(("user", "q"),)):
    return asked(*prompt), f"{chosen}<|im_end|>\n", f"{rejected}<|im_end|>\n"


def scored(scores, answers=("c", "r"), **more):
    return row(prompt="p", responses=list(answers), scores=scores, **more)


GOOD = ("p", "c", "r")  # what a used row of strings becomes: its three texts
CHAT = answered()
DEEP = 200  # levels that JSON is read at, and no tool call has
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def deep(levels):
    return b"[" * levels + b"]" * levels


# Single lines: a name, the line, and the three texts of a used row or (kind, a piece of the reason)

NO_PAIR, EMPTY, SAME, ROLES, TIE, LOST = "no pair", "empty side", "same sides", "roles", "tie", "text lost"
NOT_JSON, NOT_UTF8, BROKEN = "not JSON", "not UTF-8", "broken text"

ENCODINGS = [
    (
        "latin-1",
        '{"prompt": "é", "chosen": "c", "rejected": "r"}'.encode("latin-1"),
        (NOT_UTF8, "invalid continuation"),
    ),
    ("utf-16", pair().decode().encode("utf-16"), (NOT_UTF8, "invalid start byte at byte 0")),
    ("utf-16 without mark", pair().decode().encode("utf-16-le"), (NOT_JSON, "not valid JSON")),
    ("mark in the middle", b"\xef\xbb\xbf" + pair(), (NOT_JSON, "Unexpected UTF-8 BOM")),
    ("overlong", b'{"prompt": "\xc0\xaf", "chosen": "c", "rejected": "r"}', (NOT_UTF8, "invalid start byte")),
    ("surrogate in utf-8", b'{"prompt": "\xed\xa0\x80", "chosen": "c", "rejected": "r"}', (NOT_UTF8, "continuation")),
    ("beyond unicode", b'{"prompt": "\xf5\x80\x80\x80", "chosen": "c"}', (NOT_UTF8, "invalid start byte")),
    ("cut in a character", pair("ü")[:13], (NOT_UTF8, "invalid continuation byte at byte 12")),
    ("windows line end", pair() + b"\r", GOOD),
    ("lone CR between rows", pair() + b"\r" + pair(), (NOT_JSON, "Extra data")),
    ("blanks around", b" \t " + pair() + b" \t ", GOOD),
    ("no-break space before", "\xa0".encode() + pair(), (NOT_JSON, "Expecting value at character 0")),
    ("replacement character of the source", pair("a\ufffdb"), ("a\ufffdb", "c", "r")),
    ("escaped", b'{"prompt": "\\u0070\\n\\/", "chosen": "\\u00e9", "rejected": "r"}', ("p\n/", "é", "r")),
]

SYNTAX = [
    ("nothing but a word", b"hello", (NOT_JSON, "Expecting value at character 0")),
    ("cut in a string", pair()[:-2], (NOT_JSON, "Invalid control character")),  # the line end
    ("cut after a value", pair()[:-1], (NOT_JSON, "Expecting ',' delimiter")),
    ("comment", b"// " + pair(), (NOT_JSON, "Expecting value")),
    ("comment behind", pair() + b" // good", (NOT_JSON, "Extra data")),
    ("comma at the end", pair()[:-1] + b",}", (NOT_JSON, "property name")),
    ("comma between rows", pair() + b",", (NOT_JSON, "Extra data")),
    ("single quotes", b"{'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}", (NOT_JSON, "double quotes")),
    ("names without quotes", b'{prompt: "p", chosen: "c", rejected: "r"}', (NOT_JSON, "double quotes")),
    ("None of Python", b'{"prompt": "p", "chosen": None, "rejected": "r"}', (NOT_JSON, "Expecting value")),
    ("two objects on a line", pair() + pair(), (NOT_JSON, "Extra data")),
    ("raw tab in a string", b'{"prompt": "a\tb", "chosen": "c", "rejected": "r"}', (NOT_JSON, "Invalid control")),
    ("raw NUL in a string", b'{"prompt": "a\0b", "chosen": "c", "rejected": "r"}', (NOT_JSON, "Invalid control")),
    ("line of NULs, as a crashed disk leaves them", bytes(40), (NOT_JSON, "Expecting value")),
    ("bad escape", b'{"prompt": "\\x41", "chosen": "c", "rejected": "r"}', (NOT_JSON, "Invalid \\escape")),
    ("number with too many digits", pair(n=1)[:-1] + b"1" * 5000 + b"}", (NOT_JSON, "too many digits")),
    ("number without end", pair(n=1)[:-1] + b"e999999}", GOOD),
    ("NaN in a field nobody reads", pair(n=float("nan")), GOOD),
    ("a string", b'"prompt"', (NO_PAIR, "a row must be an object with prompt, chosen and rejected, not a string")),
    ("a number", b"7", (NO_PAIR, "not a number")),
    ("null", b"null", (NO_PAIR, "not null")),
    ("true", b"true", (NO_PAIR, "not bool")),
    ("a list", json.dumps(GOOD).encode(), (NO_PAIR, "not a list")),
    ("an empty object", b"{}", (NO_PAIR, "the row has: nothing")),
    # JSON leaves it open; as in every reader the last one counts
    ("a key twice", b'{"prompt": "p", "chosen": "x", "chosen": "c", "rejected": "r"}', GOOD),
]

TEXTS = [
    ("escaped NUL", b'{"prompt": "a\\u0000b", "chosen": "c", "rejected": "r"}', (BROKEN, "'prompt' contains a NUL")),
    (
        "escaped NUL in an answer",
        b'{"prompt": "p", "chosen": "c", "rejected": "\\u0000"}',
        (BROKEN, "'rejected' contains a NUL"),
    ),
    ("escaped NUL in a message", chat([user("a\0b")]), (BROKEN, "'prompt' contains a NUL")),
    ("escaped NUL in a system text", pair(system="a\0"), (BROKEN, "'system' contains a NUL")),
    ("escaped NUL that nobody reads", pair(note="\0"), GOOD),
    ("high surrogate", b'{"prompt": "\\ud83d", "chosen": "c", "rejected": "r"}', (BROKEN, r"'\ud83d', half of a")),
    ("low surrogate", b'{"prompt": "p", "chosen": "\\uDE00", "rejected": "r"}', (BROKEN, r"'\ude00', half of a")),
    ("surrogates turned round", b'{"prompt": "\\ude00\\ud83d", "chosen": "c", "rejected": "r"}', (BROKEN, r"'\ude00'")),
    ("surrogate in a key", pair()[:-1] + b', "\\ud800": 1}', (BROKEN, "half of a surrogate pair")),
    ("surrogate that nobody reads", pair()[:-1] + b', "note": ["\\udfff"]}', (BROKEN, "half of a surrogate pair")),
    ("both surrogates", b'{"prompt": "\\ud83d\\ude00", "chosen": "c", "rejected": "r"}', ("\U0001f600", "c", "r")),
    ("a backslash and ud800", b'{"prompt": "\\\\ud800", "chosen": "c", "rejected": "r"}', ("\\ud800", "c", "r")),
    ("right to left", pair("שלום עולם", "مرحبا \u202eabc\u202c", "r"), ("שלום עולם", "مرحبا \u202eabc\u202c", "r")),
    ("composed or not", pair("p", "é", "e\u0301"), ("p", "é", "e\u0301")),
    ("many accents", pair("Z" + "\u0335" * 300), ("Z" + "\u0335" * 300, "c", "r")),
    ("joined emoji", pair("p", "👨‍👩‍👧‍👦🏳️‍🌈", "👩🏽‍🚀"), ("p", "👨‍👩‍👧‍👦🏳️‍🌈", "👩🏽‍🚀")),
    ("control characters", pair("a\x01\x07\x1b[31m\x7f\x85"), ("a\x01\x07\x1b[31m\x7f\x85", "c", "r")),
    ("line separators", pair("a\u2028b\u2029c\x0bd\x0ce\x1cf"), ("a\u2028b\u2029c\x0bd\x0ce\x1cf", "c", "r")),
    ("line ends", pair("a\r\nb\rc\n", "c\n", "\nr"), ("a\r\nb\rc\n", "c\n", "\nr")),
    ("noncharacters", pair("a\ufffe\uffff\U0010ffff"), ("a\ufffe\uffff\U0010ffff", "c", "r")),
    ("private use and unassigned", pair("\ue000\U000e0041\u0378"), ("\ue000\U000e0041\u0378", "c", "r")),
    ("a very long word", pair("p", "x" * 50_000), ("p", "x" * 50_000, "r")),
    ("200 KB", pair("p", "ä, " * 50_000), ("p", "ä, " * 50_000, "r")),
    ("1 MB on a line", pair("q" * 1_000_000), ("q" * 1_000_000, "c", "r")),
    ("1 MB that nobody reads", pair(note="n" * 1_000_000), GOOD),
    ("1 MB of blanks", pair(" " * 1_000_000), (EMPTY, "'prompt' is empty")),
    ("the end token in a text", pair("a<eos>b", "<pad>c"), ("a<eos>b", "<pad>c", "r")),
]

TYPES = [
    ("prompt null", pair(None), (NO_PAIR, "'prompt' must be a string or a list of messages, not null; the row has: ")),
    ("prompt a number", pair(7), (NO_PAIR, "not a number")),
    ("prompt a bool", pair(True), (NO_PAIR, "not bool")),
    ("prompt an object", pair({"text": "p"}), (NO_PAIR, "'prompt' must be a string or a list of messages, not an obj")),
    ("prompt a list of strings", pair(["p"]), (NO_PAIR, "message 1 of 'prompt' must be an object, not a string")),
    ("prompt a list in a list", pair([[user("q")]]), (NO_PAIR, "message 1 of 'prompt' must be an object, not a list")),
    ("prompt an empty list", pair([]), (NO_PAIR, "no 'prompt'")),
    ("chosen null", pair("p", None), (NO_PAIR, "no 'chosen': it is null (the row has: prompt, chosen, rejected)")),
    ("chosen a number", pair("p", 3), (NO_PAIR, "must be of one kind, they are a number and a string")),
    ("chosen false", pair("p", False), (NO_PAIR, "they are bool and a string")),
    ("both numbers", pair("p", 1, 2), (NO_PAIR, "'chosen' must be a string or a list of messages, not a number")),
    ("both bools", pair("p", True, False), (NO_PAIR, "'chosen' must be a string or a list of messages, not bool")),
    ("rejected a list of a string", pair("p", "c", ["r"]), (NO_PAIR, "they are a string and a list")),
    ("rejected an object", pair("p", "c", {"text": "r"}), (NO_PAIR, "they are a string and an object")),
    (
        "both lists of strings",
        pair("p", ["c"], ["r"]),
        (NO_PAIR, "are lists of texts. Write data.columns = "),
    ),
    ("both objects of text", pair("p", {"text": "c"}, {"text": "r"}), (NO_PAIR, "of 'chosen' has no 'role' string")),
    (
        "no prompt",
        row(chosen="c", rejected="r"),
        (NO_PAIR, "not null; the row has: chosen, rejected. Without a prompt"),
    ),
    ("no rejected", row(prompt="p", chosen="c"), (NO_PAIR, "no 'rejected' (the row has: prompt, chosen)")),
    ("misspelt", row(prompt="p", choosen="c", rejected="r"), (NO_PAIR, "no 'chosen' (the row has: prompt, choosen,")),
    ("other case", row(Prompt="p", Chosen="c", Rejected="r"), (NO_PAIR, "no 'chosen' (the row has: Prompt, Chosen,")),
    (
        "a blank behind a key",
        row(**{"prompt ": "p", "chosen": "c", "rejected": "r"}),
        (NO_PAIR, "the row has: prompt ,"),
    ),
    (
        "zero-width before a key",
        row(**{"\u200bprompt": "p", "chosen": "c", "rejected": "r"}),
        (NO_PAIR, "'prompt' must"),
    ),
    (
        "nested below data",
        row(data=dict(zip(("prompt", "chosen", "rejected"), GOOD, strict=True))),
        (NO_PAIR, "no 'cho"),
    ),
    ("deep in a field nobody reads", pair(x=1)[:-2] + deep(DEEP) + b"}", GOOD),
    ("too deep in such a field", pair(x=1)[:-2] + deep(100_000) + b"}", (NOT_JSON, "nested too deeply")),
    ("deep in the prompt", pair().replace(b'"p"', deep(DEEP)), (NO_PAIR, "message 1 of 'prompt' must be an object")),
    ("only open brackets", b'{"prompt": ' + b"[" * 200_000, (NOT_JSON, "nested too deeply")),
]

EMPTIES = [
    ("empty prompt", pair(""), (EMPTY, "'prompt' is empty")),
    ("empty chosen", pair("p", ""), (EMPTY, "'chosen' is empty")),
    ("empty rejected", pair("p", "c", ""), (EMPTY, "'rejected' is empty")),
    ("blank chosen", pair("p", " \n\t\r"), (EMPTY, "'chosen' is empty")),
    ("wide blanks only", pair("p", "c", "\u3000\xa0\u2003"), (EMPTY, "'rejected' is empty")),
    # No blank for Unicode, so it is text like any other.
    ("zero-width only", pair("p", "\u200b\u200d\ufeff"), ("p", "\u200b\u200d\ufeff", "r")),
    ("the same", pair("p", "c", "c"), (SAME, "chosen and rejected are the same")),
    ("a blank apart", pair("p", "c", "c "), ("p", "c", "c ")),
    ("a line end apart", pair("p", "c\n", "c\r\n"), ("p", "c\n", "c\r\n")),
    ("the prompt is the answer", pair("c", "c", "r"), ("c", "c", "r")),
    ("empty user message", chat([user(" ")]), (EMPTY, "'prompt' is empty")),
    ("system text only", chat([system("s")]), (EMPTY, "'prompt' is empty")),
    ("no answer", chat(chosen=[]), (EMPTY, "'chosen' has no answer after the prompt")),
    ("empty answer", chat(rejected=""), (EMPTY, "'rejected' has no answer after the prompt")),
    ("the same message", chat(rejected="c"), (SAME, "the same")),
    ("messages that differ in what nobody reads", chat(rejected=[said("c", weight=0)]), (SAME, "the same")),
]

MESSAGES = [
    ("plain answers to messages", pair([user("q")]), CHAT),
    ("a text and its messages", pair("q", [user("q"), said("c")], [user("q"), said("r")]), CHAT),
    ("prompt in the sides only", row(chosen=[user("q"), said("c")], rejected=[user("q"), said("r")]), CHAT),
    (
        "sides of other prompts",
        row(chosen=[user("q"), said("c")], rejected=[user("o"), said("r")]),
        (NO_PAIR, "begin wi"),
    ),
    ("only chosen has the prompt", chat(chosen=[user("q"), said("c")]), (ROLES, "'chosen' must begin and end")),
    (
        "assistant first",
        chat([said("hi"), user("q")]),
        answered(prompt=[("assistant", "hi"), ("user", "q")]),
    ),
    ("two users", chat([user("a"), user("q")]), answered(prompt=[("user", "a"), ("user", "q")])),
    (
        "system late in the prompt",
        chat([user("q"), system("s")]),
        answered(prompt=[("user", "q"), ("system", "s")]),
    ),
    ("prompt of an assistant at its end", chat([user("q"), said("a")]), (ROLES, "ends with an assistant message")),
    ("system in an answer", chat(chosen=[said("a"), system("s"), said("c")]), (ROLES, "assistant, system, assistant")),
    ("user at the end", chat(chosen=[said("c"), user("thanks")]), (ROLES, "it has: assistant, user")),
    ("user answers", chat(rejected=[user("r")]), (ROLES, "'rejected' must begin and end with an assistant")),
    ("unknown role", chat([{"role": "critic", "content": "q"}]), (ROLES, "has the role 'critic', which is none of")),
    ("role in another case", chat([{"role": "User", "content": "q"}]), CHAT),
    ("role of 1 MB", chat([{"role": "u" * 1_000_000, "content": "q"}]), (ROLES, "...")),
    ("role null", chat([{"role": None, "content": "q"}]), (NO_PAIR, "has no 'role' string")),
    ("role a list", chat([{"role": ["user"], "content": "q"}]), (NO_PAIR, "has no 'role' string")),
    ("no content", chat([{"role": "user"}]), (NO_PAIR, "message 1 of 'prompt' has no 'content' string")),
    ("content null", chat(chosen=[said(None)]), (NO_PAIR, "message 1 of 'chosen' has no 'content' string")),
    ("content a number", chat(chosen=[said(4)]), (NO_PAIR, "has no 'content' string")),
    ("content an object", chat(chosen=[said({"text": "c"})]), (NO_PAIR, "has no 'content' string")),
    ("a null among messages", chat([user("q"), None]), (NO_PAIR, "message 2 of 'prompt' must be an object, not null")),
    ("parts of text", chat([user([{"type": "text", "text": "q"}, "", {"text": ""}])]), CHAT),
    ("image part", chat([user([{"type": "image", "url": "x"}])]), (NO_PAIR, "a part that is not text: 1 of 1")),
    ("image behind text", chat([user(["q", {"type": "image_url"}])]), (NO_PAIR, "a part that is not text: 2 of 2")),
    ("parts in parts", chat([user([["q"]])]), (NO_PAIR, "a part that is not text: 1 of 1")),
    ("part of null", chat([user([None])]), (NO_PAIR, "a part that is not text")),
    ("part with text null", chat([user([{"type": "text", "text": None}])]), (NO_PAIR, "a part that is not text")),
    ("no parts", chat([user([])]), (EMPTY, "'prompt' is empty")),
    ("answer without parts", chat(chosen=[said([])]), (EMPTY, "'chosen' has no answer")),
    (
        "calls without content",
        chat(chosen=[said(None, tool_calls=[CALL])]),
        (LOST, "the chat template leaves out a call"),
    ),
    ("empty calls without content", chat(chosen=[said(None, tool_calls=[])]), (NO_PAIR, "has no 'content' string")),
    (
        "tool turn",
        chat(chosen=[said("", tool_calls=[CALL]), {"role": "tool", "content": "t"}, said("c")]),
        (LOST, "the chat template leaves out a call of message 1 of 'chosen'"),
    ),
    (
        "calls nested too deeply",
        chat(chosen=[said("c", tool_calls=[1])]).replace(b"[1]", deep(DEEP)),
        (NO_PAIR, "message 1 of 'chosen' has 'tool_calls' nested too deeply"),
    ),
    ("tools", chat(tools=[CALL]), (LOST, "the chat template leaves out the tool 'f'")),
    ("tools as a string", chat(tools=json.dumps([CALL])), (LOST, "the chat template leaves out the tool 'f'")),
    ("tools as an empty string", chat(tools="  "), CHAT),
    ("tools as the string null", chat(tools="null"), CHAT),
    ("tools as a broken string", chat(tools="[{"), (NO_PAIR, "'tools' is a string that is not JSON")),
    ("tools as a deep string", chat(tools="[" * 100_000), (NO_PAIR, "'tools' is a string that is not JSON")),
    ("tools of plain strings", chat(tools=["search"]), (NO_PAIR, "'tools' must be a list of objects, not a list")),
    ("tools an object", chat(tools=CALL), (NO_PAIR, "'tools' must be a list of objects, not an object")),
    ("tools of half characters", chat(tools='[{"name": "\\ud800"}]'), (BROKEN, "'tools' contains half of a surrogate")),
    ("tools too deep", chat(tools=[{"a": 1}]).replace(b"1}", deep(DEEP) + b"}"), (NO_PAIR, "'tools' are nested too")),
    ("tools beside strings", pair(tools=[CALL]), (NO_PAIR, "'tools' need messages")),
    ("system column", chat(system="s"), answered(prompt=[("system", "s"), ("user", "q")])),
    ("system column beside strings", pair("q", system="s"), answered(prompt=[("system", "s"), ("user", "q")])),
    ("blank system column", pair(system=" "), GOOD),
    ("system column of no string", pair(system={"os": "linux"}), (NO_PAIR, "message 1 of 'system' has no 'role'")),
    (
        "system column and message",
        chat([system("m"), user("q")], system="s"),
        (NO_PAIR, "'system' and the system message of the conversation differ"),
    ),
    (
        "system column, prompt in the sides",
        row(system="s", chosen=[user("q"), said("c")], rejected=[user("q"), said("r")]),
        answered(prompt=[("system", "s"), ("user", "q")]),
    ),
    (
        "system column, prompt and sides that repeat it",
        pair("q", [user("q"), said("c")], [user("q"), said("r")], system="s"),
        answered(prompt=[("system", "s"), ("user", "q")]),
    ),
    (
        "system column beside a transcript",
        row(system="s", chosen="Human: q\n\nAssistant: c", rejected="Human: q\n\nAssistant: r"),
        answered(prompt=[("system", "s"), ("user", "q")]),
    ),
]

HUMAN = {"from": "human", "value": "q"}

SHAPES = [
    ("sharegpt", row(conversations=[HUMAN], chosen="c", rejected="r"), CHAT),
    ("sharegpt names", row(conversations=[{"from": "user", "value": "q"}], chosen="c", rejected="r"), CHAT),
    (
        "sharegpt, unknown from",
        row(conversations=[{"from": "narrator", "value": "q"}], chosen="c", rejected="r"),
        (ROLES, "has the role 'narrator'"),
    ),
    (
        "sharegpt without value",
        row(conversations=[{"from": "human"}], chosen="c", rejected="r"),
        (NO_PAIR, "no 'value'"),
    ),
    ("sharegpt without from", row(conversations=[{"value": "q"}], chosen="c", rejected="r"), (NO_PAIR, "no 'role'")),
    ("sharegpt null", row(conversations=None, chosen="c", rejected="r"), (NO_PAIR, "not null")),
    ("sharegpt without answers", row(conversations=[HUMAN, {"from": "gpt", "value": "c"}]), (NO_PAIR, "no 'chosen'")),
    ("transcripts", row(chosen="\n\nHuman: q\n\nAssistant: c", rejected="\n\nHuman: q\n\nAssistant: r"), CHAT),
    (
        "no common turn",
        row(chosen="Human: a\n\nAssistant: c", rejected="Human: b\n\nAssistant: r"),
        (NO_PAIR, "begin with"),
    ),
    (
        "text before the first human",
        row(chosen="Talk:\n\nHuman: q\n\nAssistant: c", rejected="Talk:\n\nHuman: q\n\nAssistant: r"),
        ("Talk:\n\nHuman: q\n\nAssistant:", " c", " r"),
    ),
    (
        "assistant twice",
        row(chosen="Human: q\n\nAssistant: a\n\nAssistant: c", rejected="Human: q\n\nAssistant: a\n\nAssistant: r"),
        (
            asked(("user", "q")),
            "a<|im_end|>\n" + turned("assistant", "c"),
            "a<|im_end|>\n" + turned("assistant", "r"),
        ),
    ),
    (
        "transcript without answer",
        row(chosen="Human: q\n\nAssistant:", rejected="Human: q\n\nAssistant: r"),
        (EMPTY, "'chosen'"),
    ),
    (
        "transcript that ends with a human",
        row(chosen="Human: q\n\nAssistant: c\n\nHuman: x", rejected="Human: q\n\nAssistant: r"),
        (ROLES, "assistant, user"),
    ),
    (
        "transcript of windows lines",
        row(chosen="Human: q\r\n\r\nAssistant: c", rejected="Human: q\r\n\r\nAssistant: r"),
        CHAT,
    ),
    ("winner", row(prompt="p", response_a="r", response_b="c", winner=" Model_B "), GOOD),
    ("winner of another case", row(prompt="p", response_a="c", response_b="r", winner="A"), GOOD),
    ("winner a number", row(prompt="p", response_a="c", response_b="r", winner=0), (NO_PAIR, "need a 'winner'")),
    ("winner blank", row(prompt="p", response_a="c", response_b="r", winner=" "), (NO_PAIR, "'winner' must name one")),
    ("winner of 1 MB", row(prompt="p", response_a="c", response_b="r", winner="w" * 1_000_000), (NO_PAIR, "...")),
    ("tie", row(prompt="p", response_a="c", response_b="r", winner="Tie (bothbad)"), (TIE, "expresses no preference")),
    ("winner null", row(prompt="p", response_a="c", response_b="r", winner=None), (NO_PAIR, "it is None")),
    (
        "two winners",
        row(prompt="p", response_a="c", response_b="r", winner_model_a=1, winner_model_b=1),
        (NO_PAIR, "need a"),
    ),
    (
        "winner without its answer",
        row(prompt="p", response_a=None, response_b="r", winner="a"),
        (NO_PAIR, "no 'chosen'"),
    ),
    ("scores", scored([2, 1]), GOOD),
    ("scores as strings", scored(["2.5", " 1 "]), GOOD),
    ("equal scores", scored([1, 1.0]), (TIE, "no two of its 2 answers differ")),
    ("scores of another length", scored([1]), (NO_PAIR, "has 2 answers and 'scores' 1 values")),
    (
        "score NaN",
        scored([float("nan"), 1]),
        (NO_PAIR, "answer 1 of 'responses' has no score that is a number, but nan"),
    ),
    ("score Infinity", scored([float("inf"), 1]), (NO_PAIR, "but inf")),
    ("score -Infinity", scored([1, float("-inf")]), (NO_PAIR, "answer 2 of 'responses' has no score")),
    ("score beyond a double", scored([1, 1]).replace(b"[1,", b"[1e999,"), (NO_PAIR, "but inf")),
    ("score of 400 digits", scored([10**400, 1]), (NO_PAIR, "has no score that is a number, but 1000")),
    ("score a string of 400 digits", scored(["1" * 400, 1]), (NO_PAIR, "has no score that is a number")),
    ("score 1e308", scored([1e308, -1e308]), GOOD),
    ("score a bool", scored([True, False]), (NO_PAIR, "but True")),
    ("score null", scored([1, None]), (NO_PAIR, "answer 2 of 'responses' has no score that is a number, but None")),
    ("score a list", scored([[1], 2]), (NO_PAIR, "but [1]")),
    ("score nested deeply", scored([1, 1]).replace(b"1]", deep(DEEP) + b"]"), (NO_PAIR, "but [[")),
    ("score empty", scored(["", 1]), (NO_PAIR, "but ''")),
    ("ranks, of which 1 is the best", row(prompt="p", completions=["r", "c"], ranks=[2, 1]), GOOD),
    ("a single answer", scored([1], ["c"]), (TIE, "no two of its 1 answers")),
    ("no answers", scored([], []), (EMPTY, "'responses' has no answers")),
    ("the best answer is null", scored([2, 1], [None, "r"]), (NO_PAIR, "no 'chosen'")),
    ("the best answer is empty", scored([2, 1], ["", "r"]), (EMPTY, "'chosen' is empty")),
    ("the best and the worst are the same", scored([2, 1], ["c", "c"]), (SAME, "the same")),
    ("scores without prompt", row(responses=["c", "r"], scores=[2, 1]), (NO_PAIR, "'prompt' must be a string")),
]

LINES = [*ENCODINGS, *SYNTAX, *TEXTS, *TYPES, *EMPTIES, *MESSAGES, *SHAPES]


# Whole files: a name, the bytes, and what becomes of each row


def gz(content, level=6):
    return gzip.compress(content, level, mtime=0)


def zst(content):
    return pa.compress(content, "zstd", asbytes=True)


def parquet(columns, **options):
    out = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), out, **options)
    return out.getvalue()


def changed(content, at, bits=0xFF):
    at %= len(content)
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]


def not_utf8(values):
    """An Arrow column of strings, the first letter of the first one no UTF-8."""
    buffers = pa.array(values).buffers()
    return pa.StringArray.from_buffers(len(values), buffers[1], pa.py_buffer(b"\xff" + buffers[2].to_pybytes()[1:]))


ROWS = pair() + b"\n" + pair("p2") + b"\n"
HEAD = b"prompt,chosen,rejected\n"
TWO, DAMAGED = ("p2", "c", "r"), ("damaged file", "the file is damaged from here on: ")
COLUMNS = {"prompt": ["p", "p2"], "chosen": ["c", "c"], "rejected": ["r", "r"]}
NOT_PARQUET = ("damaged file", "not a Parquet file: ")

TEXT_FILES = [
    ("mark.jsonl", b"\xef\xbb\xbf" + ROWS, [GOOD, TWO]),
    ("two_marks.jsonl", b"\xef\xbb\xbf" * 2 + ROWS, [(NOT_JSON, "BOM"), TWO]),
    ("mark_only.jsonl", b"\xef\xbb\xbf", []),
    ("empty.jsonl", b"", []),
    ("blank.jsonl", b" " * 200_000, []),
    ("blank_between.jsonl", pair() + b"\n" + b" \t" * 100_000 + b"\r\n\n" + pair("p2"), [GOOD, TWO]),
    ("windows.jsonl", ROWS.replace(b"\n", b"\r\n"), [GOOD, TWO]),
    ("old_mac.jsonl", ROWS.replace(b"\n", b"\r"), [(NOT_JSON, "Extra data")]),
    ("no_end.jsonl", ROWS[:-1], [GOOD, TWO]),
    ("cut.jsonl", ROWS[:-3], [GOOD, (NOT_JSON, "Unterminated string")]),
    ("cut_character.jsonl", pair() + b"\n" + pair("é")[:13], [GOOD, (NOT_UTF8, "unexpected end of data")]),
    ("utf16.jsonl", (pair() + b"\n").decode().encode("utf-16"), [(NOT_UTF8, "invalid start byte"), (NOT_JSON, "")]),
    ("pretty.jsonl", b'{\n"prompt": "p"\n}', [(NOT_JSON, ""), (NOT_JSON, "Extra data"), (NOT_JSON, "")]),
    ("array.json", b"[" + pair() + b",\n" + pair("p2") + b"]\n", [GOOD, TWO]),
    ("array_of_one_line.jsonl", b"[" + pair() + b"," + pair("p2") + b"]", [GOOD, TWO]),
    ("marked_array.json", b"\xef\xbb\xbf [" + pair() + b"]", [GOOD]),
    ("comma_at_the_end.json", b"[" + pair() + b",]", [GOOD]),
    ("cut_array.json", b"[" + pair() + b",\n" + pair("p2"), [GOOD, TWO, (NOT_JSON, "from here on")]),
    ("broken_array.json", b"[" + pair() + b", {'a'}, " + pair("p2") + b"]", [GOOD, (NOT_JSON, "from here on")]),
    ("latin1_array.json", b'[{"a": "\xe9"}, ' + pair("p2") + b"]", [(NOT_UTF8, "not UTF-8"), TWO]),
    ("cut_character_array.json", b"[" + pair() + b', "\xc3', [GOOD, (NOT_JSON, "from here on: Unterminated")]),
    ("two_arrays.json", b"[" + pair() + b"][" + pair("p2") + b"]", [GOOD, ("damaged file", "the array ends here")]),
    ("array_in_array.json", b"[[" + pair() + b"]]", [(NO_PAIR, "not a list")]),
    ("object_around.json", b'{"data": [' + pair() + b"]}", [(NO_PAIR, "no 'chosen' (the row has: data)")]),
    ("list_row_first.jsonl", b"[1]\n" + pair(), [(NO_PAIR, "not a number"), ("damaged file", "but more text follows")]),
]

PACKED_FILES = [
    ("a.jsonl.gz", gz(ROWS), [GOOD, TWO]),
    ("two_members.jsonl.gz", gz(pair() + b"\n") + gz(pair("p2")), [GOOD, TWO]),
    ("zeros_behind.jsonl.gz", gz(ROWS) + bytes(512), [GOOD, TWO]),
    ("garbage_behind.jsonl.gz", gz(ROWS) + b"garbage", [GOOD, TWO, DAMAGED]),
    ("no_end.jsonl.gz", gz(ROWS)[:-3], [GOOD, TWO, DAMAGED]),
    ("cut_in_the_head.jsonl.gz", gz(ROWS)[:5], [DAMAGED]),
    ("flipped_head.jsonl.gz", changed(gz(ROWS), 0), [DAMAGED]),
    ("flipped_sum.jsonl.gz", changed(gz(ROWS), -6), [GOOD, TWO, ("damaged file", "CRC check failed")]),
    ("none.jsonl.gz", ROWS, [DAMAGED]),
    ("none.json.gz", b"[" + pair() + b"]", [DAMAGED]),
    ("empty.jsonl.gz", b"", []),
    ("of_nothing.jsonl.gz", gz(b""), []),
    ("twice.jsonl.gz", gz(gz(ROWS)), [(NOT_UTF8, "invalid start byte at byte 1")]),
    ("cut_array.json.gz", gz(b"[" + ROWS)[:-4], [DAMAGED]),
    ("a.jsonl.zst", zst(ROWS), [GOOD, TWO]),
    ("two_frames.jsonl.zst", zst(pair() + b"\n") + zst(pair("p2")), [GOOD, TWO]),
    ("cut.jsonl.zst", zst(ROWS)[:-3], [DAMAGED]),
    ("cut_in_the_head.jsonl.zst", zst(ROWS)[:3], [DAMAGED]),
    ("garbage_behind.jsonl.zst", zst(ROWS) + b"garbage!!", [DAMAGED]),
    ("flipped_head.jsonl.zst", changed(zst(ROWS), 0), [DAMAGED]),
    ("none.jsonl.zst", ROWS, [DAMAGED]),
    ("none.json.zst", b"[" + pair() + b"]", [DAMAGED]),
    ("none.csv.zst", HEAD + b"p,c,r\n", [DAMAGED]),
    ("gzip.jsonl.zst", gz(ROWS), [DAMAGED]),
    ("empty.jsonl.zst", b"", []),
]

CSV_FILES = [
    ("a.csv", HEAD + b"p,c,r\r\np2,c,r\n", [GOOD, TWO]),
    ("mark.csv", b"\xef\xbb\xbf" + HEAD + b"p,c,r", [GOOD]),
    ("order.csv", b"n,rejected,prompt,chosen\n1,r,p,c\n", [GOOD]),
    ("empty.csv", b"", []),
    ("head_only.csv", HEAD, []),
    ("no_head.csv", b"p,c,r\np2,c,r\n", [(NO_PAIR, "no 'chosen' (the row has: p, c, r)")]),
    ("semicolons.csv", HEAD.replace(b",", b";") + b"p;c;r\n", [(NO_PAIR, "the row has: prompt;chosen;rejected")]),
    ("cells.csv", HEAD + b"p,c\np2,c,r\np,c,r,x\n", [("broken row", "2 cells under"), TWO, ("broken row", "4 cells")]),
    ("empty_cell.csv", HEAD + b"p,,r\n", [(EMPTY, "'chosen' is empty")]),
    ("blank_lines.csv", HEAD + b"\n\r\np,c,r\n\n", [GOOD]),
    ("quotes.csv", HEAD + b'"p, ""q""\nx",c,"r\r\n"\n', [('p, "q"\nx', "c", "r\r\n")]),
    ("quote_inside.csv", HEAD + b'p 5" x,c,r\n', [('p 5" x', "c", "r")]),
    # Else the row behind would become part of the answer.
    ("open_quote.csv", HEAD + b'p,c,"r\np2,c,"r"\np2,c,r\n', [("broken row", "',' expected after '\"'"), TWO]),
    ("never_closed.csv", HEAD + b'p,c,r\np,c,"r\np2,c,r\n', [GOOD, ("damaged file", "is not closed")]),
    ("behind_a_quote.csv", HEAD + b'p,"c"x,r\np2,c,r\n', [("broken row", "not valid CSV"), TWO]),
    ("latin1.csv", HEAD + b"\xe9,c,r\np2,c,r\n", [(NOT_UTF8, "not UTF-8"), TWO]),
    ("latin1_head.csv", HEAD[:-1] + b",Qualit\xe4t\np,c,r,1\np2,c,r,2\n", [GOOD, TWO]),
    ("old_mac.csv", HEAD.replace(b"\n", b"\r") + b"p,c,r\r", [("broken row", "new-line character")]),
    ("nul.csv", HEAD + b"p,c\0,r\np2,c,r\n", [(BROKEN, "'chosen' contains a NUL"), TWO]),
    ("separator.csv", HEAD + "p\u2028,c\x85,r\x0b\n".encode(), [("p\u2028", "c\x85", "r\x0b")]),
    ("half_character.csv", HEAD + b"p,c,\\ud800\n", [("p", "c", "\\ud800")]),
    ("huge.csv", HEAD + b"p," + b"c" * 1_000_000 + b",r\n", [("p", "c" * 1_000_000, "r")]),
    # As of a key in JSON the last one counts.
    ("column_twice.csv", b"prompt,chosen,rejected,chosen\np,x,r,c\n", [GOOD]),
    ("cut.csv.gz", gz(HEAD + b"p,c,r\n")[:-4], [GOOD, DAMAGED]),
]

COLUMN_FILES = [
    ("a.parquet", parquet(COLUMNS), [GOOD, TWO]),
    ("nulls.parquet", parquet({**COLUMNS, "chosen": [None, "c"]}), [(NO_PAIR, "no 'chosen'"), TWO]),
    (
        "dictionary.parquet",
        parquet({name: pa.array(v).dictionary_encode() for name, v in COLUMNS.items()}),
        [GOOD, TWO],
    ),
    ("bytes.parquet", parquet({name: [b"p"] for name in COLUMNS}), [(NO_PAIR, "not bytes")]),
    ("numbers.parquet", parquet({**COLUMNS, "prompt": [1, 2]}), [(NO_PAIR, "not a number")] * 2),
    ("dates.parquet", parquet({**COLUMNS, "prompt": [date(2020, 1, 1)] * 2}), [(NO_PAIR, "not date")] * 2),
    (
        "messages.parquet",
        parquet({"prompt": [[user("q")]], "chosen": [[said("c")]], "rejected": [[said("r")]]}),
        [CHAT],
    ),
    ("latin1.parquet", parquet({**COLUMNS, "chosen": not_utf8(["c", "c"])}), [(NOT_UTF8, "invalid start byte"), TWO]),
    (
        "latin1_unread.parquet",
        parquet({**COLUMNS, "note": not_utf8(["c", "c"])}),
        [(NOT_UTF8, "invalid start byte"), TWO],
    ),
    (
        "year_300000.parquet",
        parquet({**COLUMNS, "when": pa.array([2**62, 0], pa.timestamp("us"))}),
        [("broken row", "a value that cannot be read: date value out of range"), TWO],
    ),
    ("nul.parquet", parquet({**COLUMNS, "prompt": ["a\0", "p2"]}), [(BROKEN, "'prompt' contains a NUL"), TWO]),
    ("no_rows.parquet", parquet(pa.table(COLUMNS).slice(0, 0)), []),
    ("empty.parquet", b"", [NOT_PARQUET]),
    ("text.parquet", ROWS, [NOT_PARQUET]),
    ("cut.parquet", parquet(COLUMNS)[:-10], [NOT_PARQUET]),
    ("flipped_end.parquet", changed(parquet(COLUMNS), -1), [NOT_PARQUET]),
    ("flipped_footer.parquet", changed(parquet(COLUMNS), -12), None),
    ("flipped_page.parquet", changed(parquet(COLUMNS), 6), None),
    ("arrow.parquet", b"ARROW1\0\0", [NOT_PARQUET]),
    ("text.arrow", ROWS, [("damaged file", "not an Arrow file: ")]),
]

FILES = [*TEXT_FILES, *PACKED_FILES, *CSV_FILES, *COLUMN_FILES]


# What became of them


def outcome(folder, path):
    """(line or row, byte, verdict) of every row, in order; a verdict is three texts, or (kind, reason)."""
    counts = tokenized(folder, [path], max_length=ROOM, tokenizer=TOKENIZER)
    found = []
    for used in rows_of(folder, "train"):
        texts = [TOKENIZER.decode(used[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")]
        assert all(text.endswith("<eos>") for text in texts[1:])
        verdict = (texts[0], *(text.removesuffix("<eos>") for text in texts[1:]))
        found.append((used["line"], used["byte"], verdict))
    for entry in rejections(folder):
        assert entry["file"] == str(path) and len(entry["reason"]) < 1000 and len(entry["excerpt"]) <= 120
        found.append((entry.get("line", entry.get("row")), entry.get("byte", -1), (entry["kind"], entry["reason"])))
    used = [verdict for _, _, verdict in found if len(verdict) == 3]
    assert counts["read"] == len(found) == counts["train"] + counts["rejected"]
    assert counts["train"] == len(used) and sum(counts["reasons"].values()) == counts["rejected"]
    return sorted(found)


def agree(found, expected):
    """Texts must be the same, of a rejection its kind and a piece of its reason."""
    if len(expected) == 3:
        return found == expected
    return len(found) == 2 and found[0] == expected[0] and expected[1] in found[1]


def short(verdict):
    return tuple(text[:200] for text in verdict)


def check(found, expected):
    for verdict, wanted in zip(found, expected, strict=True):
        assert agree(verdict, wanted), f"{short(verdict)} instead of {short(wanted)}"


def test_there_are_enough_of_them():
    assert len(LINES) + len(FILES) >= 90
    assert len({name for name, *_ in LINES}) == len(LINES)
    assert len({name for name, *_ in FILES}) == len(FILES)
    assert not any(b"\n" in line for _, line, _ in LINES)


@pytest.mark.parametrize(("line", "expected"), [case[1:] for case in LINES], ids=[case[0] for case in LINES])
def test_a_nasty_line(tmp_path, line, expected):
    """It gets its verdict, and its neighbours are used whatever it holds."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(pair("before") + b"\n" + line + b"\n" + pair("after"))
    before, (number, byte, verdict), after = outcome(tmp_path / "out", path)
    assert (before[2], after[2]) == (("before", "c", "r"), ("after", "c", "r"))
    assert (number, byte) == (2, len(pair("before")) + 1)
    check([verdict], [expected])


@pytest.mark.parametrize(("name", "content", "expected"), FILES, ids=[case[0] for case in FILES])
def test_a_nasty_file(tmp_path, name, content, expected):
    """Every row gets its verdict. Where damage may show as this or that, what is used is still what was written."""
    path = tmp_path / name
    path.write_bytes(content)
    found = [verdict for _, _, verdict in outcome(tmp_path / "out", path)]
    if expected is None:
        assert found and all(len(verdict) == 2 or verdict in (GOOD, TWO) for verdict in found)
    else:
        check(found, expected)


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.jsonl.zst"])
def test_all_lines_in_one_file(tmp_path, name):
    """Each with a good row before it: nothing is lost, and every line has the number and the byte it begins at."""
    lines, expected = [], []
    for number, (_, line, verdict) in enumerate(LINES):
        lines += [pair(f"good {number}"), line]
        expected += [(f"good {number}", "c", "r"), verdict]
    content = b"\n".join(lines) + b"\n"
    path = tmp_path / name
    path.write_bytes(gz(content) if name.endswith("gz") else zst(content) if name.endswith("zst") else content)
    found = outcome(tmp_path / "out", path)
    assert [number for number, _, _ in found] == list(range(1, len(lines) + 1))
    starts = [content[byte : byte + len(line) + 1] for (_, byte, _), line in zip(found, lines, strict=True)]
    assert starts == [line + b"\n" for line in lines]
    check([verdict for _, _, verdict in found], expected)


def test_all_lines_in_one_array(tmp_path):
    """An array costs all that follows what is no JSON, so it holds only the others."""
    cases = [(line, verdict) for _, line, verdict in LINES if verdict[0] not in (NOT_JSON, NOT_UTF8)]
    path = tmp_path / "all.json"
    path.write_bytes(b"[" + b",\n".join(line for line, _ in cases) + b"]")
    found = outcome(tmp_path / "out", path)
    assert [number for number, _, _ in found] == list(range(1, len(cases) + 1))
    check([verdict for _, _, verdict in found], [verdict for _, verdict in cases])


def test_rows_of_strings_in_a_csv_and_in_a_parquet_file(tmp_path):
    """The same texts in other files: they are kept and rejected as in JSON lines."""
    names = ["prompt", "chosen", "rejected"]
    rows, expected = [], []
    for _, line, verdict in [*TEXTS, *EMPTIES]:
        value = json.loads(line)
        whole = verdict[0] != BROKEN or "NUL" in verdict[1]  # half a character stands in neither of these files
        if whole and list(value) == names and all(isinstance(side, str) for side in value.values()):
            rows, expected = [*rows, value], [*expected, verdict]
    assert len(rows) > 20
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        check([verdict for _, _, verdict in outcome(tmp_path / name[2:], tmp_path / name)], expected)


def test_a_file_that_cannot_be_read_is_no_damaged_file(tmp_path):
    """Else a network that fails would cost the rest of a file, and training would go on without it."""
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("no file whose reading fails")
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).symlink_to("/proc/self/mem")
        with pytest.raises(OSError) as error:
            list(read_rows(str(tmp_path / name)))
        assert error.value.errno is not None
