"""What is odd about rows that are used, or lost on their way, is a finding; right rows have none of them."""

import json

import pytest
from tokenizers import normalizers

from dpo.text.tokenizers import CHATML, byte_tokenizer
from tests.pipeline.doctor.test_doctor import as_messages, clean_rows, examined, found

ROWS = clean_rows(60)
CHATS = [as_messages(row) for row in ROWS]
SIDES = ("chosen", "rejected")
CALLS = (  # ChatML with tools and calls, which trims nothing and knows three roles
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}"
    "{% if m.role in ('system', 'user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, None] = {}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}


def tokenizer(folder, template=CALLS):
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    made.chat_template = template
    made.save_pretrained(folder / "tokenizer")
    return {"path": str(folder / "tokenizer")}


def composing(folder):
    """A tokenizer that composes letters and accents, so that an accent at the start of an answer joins the prompt."""
    made = byte_tokenizer()
    made.backend_tokenizer.normalizer = normalizers.NFC()
    made.save_pretrained(folder / "tokenizer")
    return {"path": str(folder / "tokenizer")}


def each(rows, change):
    return [{**row, **change(number, row)} for number, row in enumerate(rows)]


def call(number, arguments):
    town = {"town": "x" * (number % 7) + str(number), **arguments}
    function = {"name": "find", "arguments": json.dumps(town) if arguments is TEXT else town}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


AGAIN = [{"role": "user", "content": "Again?"}, {"role": "assistant", "content": "Yes, again."}]
# name of the finding -> rows, whether the tokenizer has a template, severity, how many pairs have the fault
PLANTED = {
    "prompt-in-answer": (each(ROWS, lambda _, r: {s: r["prompt"] + r[s] for s in SIDES}), False, "note", 60),
    "strings-past-template": (ROWS, True, "warning", 60),
    "scores-contradict": (each(ROWS, lambda _, __: {"score_chosen": 1, "score_rejected": 9.0}), False, "warning", 60),
    "scores-equal": (each(ROWS, lambda n, _: {f"{s}-rating": n for s in SIDES}), False, "warning", 60),
    "nulls-in-calls": (
        each(CHATS, lambda n, _: {"chosen": call(n, {"river": None}), "tools": [TOOL]}), True, "note", 60
    ),
    "json-in-json": (each(CHATS, lambda n, _: {"chosen": call(n, TEXT), "tools": [TOOL]}), True, "note", 60),
    "words-glued": (each(ROWS, lambda _, r: {s: r[s].strip() for s in SIDES}), False, "warning", 60),
    "looks-like-json": (each(ROWS, lambda _, r: {s: json.dumps([r[s]]) for s in SIDES}), False, "warning", 60),
    "turns-all-scored": (each(CHATS, lambda _, r: {"chosen": [*r["chosen"], *AGAIN]}), True, "note", 60),
    "text-lost": (
        each(CHATS, lambda n, r: {"prompt": [{"role": "tool", "content": "Look."}][n % 6 :] + r["prompt"]}),
        True,
        "error",
        10,
    ),
    "thoughts-lost": (
        each(CHATS, lambda n, r: {"chosen": [{**r["chosen"][0], "thinking": "Hm."}]} if n % 6 == 0 else {}),
        True,
        "error",
        10,
    ),
    "mixed-forms": ([*ROWS[:40], *CHATS[40:]], True, "note", 40),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(tmp_path, name):
    rows, chat, severity, number = PLANTED[name]
    report = examined(tmp_path / "set", rows, tokenizer=tokenizer(tmp_path) if chat else None, max_length=2048)
    finding = found(report)[name]
    assert (finding.severity, finding.number) == (severity, number)
    only_counted = number is None or name == "turns-all-scored"
    assert only_counted or (finding.examples and all("train.jsonl line " in str(each) for each in finding.examples))
    allowed = {"length-bias", "truncation", name}
    assert set(found(report)) <= allowed


def test_text_that_the_tokenizer_changes_is_found(tmp_path):
    rows = each(
        ROWS, lambda n, r: {"prompt": f"{r['prompt']} e", "chosen": f"\u0301{r['chosen']}"} if n % 6 == 0 else {}
    )
    report = examined(tmp_path / "set", rows, tokenizer=composing(tmp_path))
    finding = found(report)["text-changed"]
    assert (finding.severity, finding.number, len(finding.examples)) == ("error", 10, 3)
    assert set(found(report)) <= {"length-bias", "text-changed"}


def test_where_the_last_turn_alone_is_scored_nothing_is_said_of_turns(tmp_path):
    rows, *_ = PLANTED["turns-all-scored"]
    report = examined(tmp_path / "set", rows, tokenizer=tokenizer(tmp_path), max_length=2048, scored="last")
    assert report.train.pairs == 60
    assert "turns-all-scored" not in found(report)


def sharegpt(row):
    answers = {side: {"from": "gpt", "value": row[side].strip()} for side in SIDES}
    return {"conversations": [{"from": "human", "value": row["prompt"]}], **answers}


def ranked(row):
    answers = ({"text": row[side].strip(), "score": score} for side, score in (("chosen", 8), ("rejected", 2)))
    return {"prompt": [{"role": "user", "content": row["prompt"]}], "completions": list(answers)}


def judged(row):
    asked = {"role": "user", "content": row["prompt"]}
    answers = [[asked, {"role": "assistant", "content": row[side].strip()}] for side in SIDES]
    both = {"conversation_a": answers[0], "conversation_b": answers[1]}
    return {**both, "winner": "model_a", "model_a": "x", "model_b": "y", "turn": 1, "language": "English"}


def transcripts(row):
    return {side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}" for side in SIDES}


RIGHT = {
    "messages": CHATS,
    "a system message": [as_messages(row, "Be brief.") for row in ROWS],
    "a system column": each(CHATS, lambda _, __: {"system": "Be brief."}),
    "an empty system column": each(CHATS, lambda n, __: {"system": "" if n % 2 else None}),
    "scores": each(CHATS, lambda _, __: {"score_chosen": 8.0, "score_rejected": 3.0, "source": "s", "id": "1"}),
    "calls": each(CHATS, lambda n, _: {"chosen": call(n, {"river": "Inn"}), "tools": [TOOL]}),
    "no prompt": [{side: [*row["prompt"], *row[side]] for side in SIDES} for row in CHATS],
    "ShareGPT": list(map(sharegpt, ROWS)),
    "scored answers": list(map(ranked, ROWS)),
    "two conversations": list(map(judged, ROWS)),
    "transcripts": list(map(transcripts, ROWS)),
    "options of the template": each(CHATS, lambda _, __: {"chat_template_kwargs": {"mood": "calm"}}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_rows_have_none(tmp_path, name):
    report = examined(tmp_path / "set", RIGHT[name], tokenizer=tokenizer(tmp_path), max_length=2048)
    assert report.train.pairs == 60
    assert set(found(report)) <= {"length-bias"}


def test_strings_that_are_meant_so_are_none(tmp_path):
    given = tokenizer(tmp_path, CHATML)
    assert found(examined(tmp_path / "as-is", ROWS, tokenizer=given, strings="as-is")) == {}
    report = examined(tmp_path / "messages", ROWS, tokenizer=given, strings="messages")
    assert "strings-past-template" not in found(report) and report.train.pairs == len(ROWS)
