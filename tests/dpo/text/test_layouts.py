"""Rows of each layout of the table, by hand, with the one pair that all of them mean."""

import json
import sys

import pytest

from dpo.text.fields import Fields
from dpo.text.layouts import LAYOUTS, TO_BE_SAID, layout_of, to_be_said
from dpo.text.pairs import PreferencePair, read_row
from dpo.text.rejection import Rejection
from dpo.text.shapes import Reading

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


Q, YES, NO = "What is 2+2?", "It is 4.", "It is 5."
CHAT = PreferencePair([user(Q)], [said(YES)], [said(NO)])
TEXT = PreferencePair(Q, YES, NO)
TALK = f"\n\nHuman: {Q}\n\nAssistant:"
TREE = {"text": Q, "role": "prompter", "replies": [
    {"text": NO, "role": "assistant", "rank": 1, "replies": []},
    {"text": YES, "role": "assistant", "rank": 0},
]}  # fmt: skip
# Name of the layout, a row of it, and its pair.
ROWS = [
    ("LMSYS' and Kaggle's arena", {"prompt": json.dumps([Q]), "response_a": json.dumps([NO]),
     "response_b": json.dumps([YES]), "winner_model_a": "0", "winner_model_b": "1", "winner_tie": "0"}, CHAT),
    ("LMSYS' and Kaggle's arena", {"prompt": [Q], "response_a": [NO], "response_b": [YES], "winner": "model_b"}, CHAT),
    ("two answers with a winner", {"prompt": Q, "response_a": YES, "response_b": NO, "winner": "A"}, TEXT),
    ("two answers with a winner", {"prompt": Q, "model_a": "m", "model_b": "n", "response_a": NO, "response_b": YES,
     "winner": "n"}, TEXT),
    ("two conversations with a winner", {"conversation_a": [user(Q), said(YES)],
     "conversation_b": [user(Q), said(NO)], "winner": "model_a"}, CHAT),
    ("Prometheus", {"orig_instruction": Q, "orig_response_A": NO, "orig_response_B": YES, "orig_preference": "B",
     "instruction": "Compare.", "input": "x", "output": "y"}, TEXT),
    ("OpenAI's preference rows", {"input": {"messages": [user(Q)], "tools": [], "parallel_tool_calls": True},
     "preferred_output": [said(YES)], "non_preferred_output": [said(NO)]}, CHAT),
    ("chosen_messages and rejected_messages", {"chosen_messages": [user(Q), said(YES)],
     "rejected_messages": [user(Q), said(NO)]}, CHAT),
    ("torchtune", {"chosen_conversations": [human(Q), gpt(YES)], "rejected_conversations": [human(Q), gpt(NO)]}, CHAT),
    ("ms-swift", {"messages": [user(Q), said(YES)], "rejected_response": NO}, CHAT),
    ("ms-swift with whole conversations", {"messages": [user(Q), said(YES)],
     "rejected_messages": [user(Q), said(NO)]}, CHAT),
    ("ms-swift with query and history", {"query": Q, "response": YES, "rejected_response": NO,
     "history": [["Hi", "Hello"]]}, CHAT._replace(prompt=[user("Hi"), said("Hello"), user(Q)])),
    ("Stack Exchange's pairs", {"question": Q, "response_j": YES, "response_k": NO, "date": "2020"}, TEXT),
    ("ShareGPT, LLaMA-Factory", {"conversations": [human(Q)], "chosen": gpt(YES), "rejected": gpt(NO)}, CHAT),
    ("Axolotl's chat_template", {"messages": [user(Q)], "chosen": said(YES), "rejected": said(NO)}, CHAT),
    ("Axolotl's chat_template", {"messages": [user(Q), said(YES)], "chosen": [user(Q), said(YES)],
     "rejected": [user(Q), said(NO)]}, CHAT),
    ("Step-DPO", {"prompt": Q, "initial_reason_steps": "Step 1:", "chosen": YES, "rejected": NO,
     "full_chosen": "a b", "answer": "4"}, TEXT._replace(lead="Step 1:")),
    ("transcripts with their prompt", {"prompt": TALK, "chosen": f"{TALK} {YES}", "rejected": f"{TALK} {NO}"}, CHAT),
    ("prompt, chosen and rejected", {"prompt": Q, "chosen": YES, "rejected": NO, "source": "s"}, TEXT),
    ("prompt, chosen and rejected", {"prompt": [{"role": "User", "content": Q}],
     "chosen": [{"role": "Chatbot", "content": YES}], "rejected": [{"role": "CHATBOT", "content": NO}]}, CHAT),
    ("prompt, chosen and rejected", {"prompt": json.dumps([user(Q)]), "chosen": str([said(YES)]),
     "rejected": json.dumps([said(NO)])}, CHAT),
    ("instruction, input and history (alpaca)", {"instruction": "What is", "input": "2+2?", "chosen": YES,
     "rejected": NO}, TEXT._replace(prompt="What is\n2+2?")),
    ("instruction, input and history (alpaca)", {"instruction": Q, "input": "", "chosen": YES, "rejected": NO,
     "history": [["Hi", "Hello"]]}, CHAT._replace(prompt=[user("Hi"), said("Hello"), user(Q)])),
    ("question, chosen and rejected (orca)", {"question": Q, "chosen": YES, "rejected": NO}, TEXT),
    ("query, chosen and rejected", {"query": Q, "chosen": YES, "rejected": NO}, TEXT),
    ("input, chosen and rejected", {"input": Q, "chosen": YES, "rejected": NO}, TEXT),
    ("one string a side", {"chosen": f"{TALK} {YES}", "rejected": f"{TALK} {NO}"}, CHAT),
    ("one string a side", {"chosen": "The river is long.", "rejected": "The river is a town."},
     PreferencePair("The river is", " long.", " a town.")),
    ("one conversation a side", {"chosen": [user(Q), said(YES)], "rejected": [user(Q), said(NO)]}, CHAT),
    ("UltraFeedback, distilabel, Nectar, NeMo-RL: scored answers", {"instruction": Q, "generations": [NO, YES],
     "ratings": [2, 5], "rationales": ["a", "b"]}, TEXT),
    ("UltraFeedback, distilabel, Nectar, NeMo-RL: scored answers", {"prompt": Q,
     "answers": [{"answer": NO, "rank": 2.0}, {"answer": YES, "rank": 1.0}]}, TEXT),
    ("UltraFeedback, distilabel, Nectar, NeMo-RL: scored answers", {"context": [user(Q)],
     "completions": [{"rank": 1, "completion": [said(NO)]}, {"rank": 0, "completion": [said(YES)]}]}, CHAT),
    ("UltraFeedback, distilabel, Nectar, NeMo-RL: scored answers", {"contents": [{"role": "user",
     "parts": [{"text": Q}]}], "completions": [{"score": 0.0, "completion": {"role": "model", "parts": [{"text": NO}]}},
     {"score": 1.0, "completion": {"role": "model", "parts": [{"text": YES}]}}]}, CHAT),
    ("OpenAssistant's trees", {"prompt": TREE, "message_tree_id": "t"}, CHAT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "pair"), ROWS, ids=[f"{number}-{row[0]}" for number, row in enumerate(ROWS)])
def test_a_row_of_each_layout(name, row, pair):
    found = layout_of(Fields(row))
    assert found is not None and found.name == name
    assert read_row(row) == ([pair], ())


def test_every_layout_has_a_row():
    assert {one.name for one in LAYOUTS} == {name for name, _, _ in ROWS}


VERDICTS = [
    ("SHP", {"history": Q, "human_ref_A": YES, "human_ref_B": NO, "labels": 1, "score_A": 4, "upvote_ratio": 0.9},
     {"prompt": "history", "response_a": "human_ref_A", "response_b": "human_ref_B", "winner": "labels"},
     {"1": "a", "0": "b"}),
    ("PKU-SafeRLHF", {"prompt": Q, "response_0": NO, "response_1": YES, "better_response_id": 1,
     "safer_response_id": 0},
     {"response_a": "response_0", "response_b": "response_1", "winner": "better_response_id"}, "index"),
    ("HelpSteer3", {"context": Q, "response1": YES, "response2": NO, "overall_preference": -2, "feedback1": "x"},
     {"prompt": "context", "response_a": "response1", "response_b": "response2", "winner": "overall_preference"},
     "negative-is-a"),
    ("summarize_from_feedback", {"info": {"post": Q, "title": "x y z"}, "summaries": [{"text": NO}, {"text": YES}],
     "choice": 1}, {"prompt": "info.post", "completions": "summaries", "winner": "choice"}, "index"),
    ("HelpSteer2's preferences", {"prompt": Q, "response_1": YES, "response_2": NO, "preference_strength": -2,
     "preference_statement": "The first is better."},
     {"response_a": "response_1", "response_b": "response_2", "winner": "preference_strength"}, "negative-is-a"),
    ("WebGPT's comparisons", {"question": {"full_text": Q, "id": "1"}, "answer_0": NO, "answer_1": YES, "score_0": -0.5,
     "score_1": 0.5, "quotes_0": {"extract": ["x"]}, "quotes_1": {"extract": []}},
     {"prompt": "question.full_text", "response_a": "answer_0", "response_b": "answer_1", "winner": "score_0"},
     "positive-is-a"),
    ("AlpacaFarm", {"instruction": "What is", "input": "2+2?", "output_1": NO, "output_2": YES, "preference": 2},
     {"response_a": "output_1", "response_b": "output_2", "winner": "preference"}, {"1": "a", "2": "b"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "columns", "verdict"), VERDICTS, ids=[row[0] for row in VERDICTS])
def test_a_verdict_that_is_a_number_is_read_as_it_is_said(name, row, columns, verdict):
    """By path alone the row is refused with the lines that read it."""
    (refused,) = read_row(row).pairs
    assert isinstance(refused, Rejection) and name in refused.reason
    assert all(f'{ours} = "{theirs}"' in refused.reason for ours, theirs in columns.items())
    (pair,), unread = read_row(row, Reading(columns, verdict))
    assert (pair.chosen, pair.rejected, unread) == (YES, NO, ())
    (mapped_only,) = read_row(row, Reading(columns)).pairs
    assert isinstance(mapped_only, Rejection) and "data.verdict" in mapped_only.reason


def test_every_verdict_has_a_row():
    assert {one.name for one in TO_BE_SAID} == {name for name, *_ in VERDICTS}
    assert all(to_be_said(Fields(row)) is not None for _, row, _, _ in VERDICTS)


@pytest.mark.parametrize(
    ("winner", "verdict", "chosen"),
    [
        (1, {"1": "a", "0": "b"}, YES),
        (0.0, {"1": "a", "0": "b"}, NO),
        (True, {"true": "b", "false": "a"}, NO),
        ("first", {"first": "a", "second": "b"}, YES),
        ("0", "index", YES),
        (1, "index", NO),
        (-0.5, "negative-is-a", YES),
        (3, "negative-is-a", NO),
        (3, "positive-is-a", YES),
        ("-1", "positive-is-a", NO),
    ],
)
def test_what_a_verdict_means(winner, verdict, chosen):
    row = {"prompt": Q, "response_a": YES, "response_b": NO, "winner": winner}
    (pair,) = read_row(row, Reading(verdict=verdict)).pairs
    assert pair.chosen == chosen


@pytest.mark.parametrize(
    ("winner", "verdict", "reason"),
    [
        (
            2,
            {"1": "a"},
            'the verdict is 2, which is none of those in data.verdict (1). Add "2" to it',
        ),
        (2, "index", "no index of two answers"),
        ("x", "negative-is-a", "needs a number"),
        (float("nan"), "index", "needs a number"),
        (1, None, 'data.verdict = "index" if 0 means the first'),
        ("1", None, "data.verdict"),
        (True, None, 'data.verdict = { "true" = "a"'),
        (-3, None, '"negative-is-a"'),
    ],
)
def test_a_verdict_is_never_guessed(winner, verdict, reason):
    row = {"prompt": Q, "response_a": YES, "response_b": NO, "winner": winner}
    (refused,) = read_row(row, Reading(verdict=verdict)).pairs
    assert isinstance(refused, Rejection) and reason in refused.reason


def test_zero_is_a_tie_where_the_sign_decides():
    row = {"prompt": Q, "response_a": YES, "response_b": NO, "winner": 0}
    assert [pair.kind for pair in read_row(row, Reading(verdict="negative-is-a")).pairs] == ["tie"]
    assert [pair.kind for pair in read_row(row, Reading(verdict={"0": "tie"})).pairs] == ["tie"]


# What stands beside a pair


def test_a_system_text_under_any_of_its_names():
    system = {"role": "system", "content": "Be short."}
    for name in ("system", "system_prompt", "system_message"):
        (pair,) = read_row({"prompt": Q, "chosen": YES, "rejected": NO, name: "Be short."}).pairs
        assert pair == CHAT._replace(prompt=[system, user(Q)])
    (pair,) = read_row({"prompt": [user(Q)], "chosen": YES, "rejected": NO, "system": [system]}).pairs
    assert pair.prompt == [system, user(Q)]
    (refused,) = read_row({"prompt": Q, "chosen": YES, "rejected": NO, "system": "a", "system_prompt": "b"}).pairs
    assert "several columns with a system text" in refused.reason


def test_a_column_that_nobody_reads_is_counted():
    row = {"prompt": Q, "chosen": YES, "rejected": NO, "notes": "n", "empty": "", "score_chosen": 1, "null": None}
    assert read_row(row) == ([TEXT], ("notes",))
    assert read_row(row, Reading(ignore=("notes",))) == ([TEXT], ())
    row = {"prompt": [{**user(Q), "mood": "calm", "id": 3}], "chosen": [said(YES)], "rejected": [said(NO)]}
    assert read_row(row) == ([CHAT], ("prompt[].mood",))
    row = {"prompt": Q, "completions": [{"text": YES, "score": 2, "mood": "calm"}, {"text": NO, "score": 1}]}
    assert read_row(row) == ([TEXT], ("completions[].mood",))


@pytest.mark.parametrize("name", ["context", "documents", "history", "question", "input", "messages", "prefix"])
def test_a_column_that_changes_the_text_is_refused_or_left_out_knowingly(name):
    row = {"prompt": Q, "chosen": YES, "rejected": NO, name: "Two numbers are added."}
    (refused,) = read_row(row).pairs
    assert refused.kind == "unread column" and f'data.ignore = ["{name}"]' in refused.reason
    assert read_row(row, Reading(ignore=(name,))) == ([TEXT], ())
    assert read_row({**row, name: Q}) == ([TEXT], ())  # it says nothing that the pair does not


def test_what_stands_in_the_same_object_as_the_prompt_is_not_lost():
    row = {
        "input": {"messages": [user(Q)], "tools": [{"name": "f"}], "note": "n"},
        "good": [said(YES)],
        "bad": [said(NO)],
    }
    found = read_row(row, Reading({"prompt": "input.messages", "chosen": "good", "rejected": "bad"}))
    assert found == ([CHAT._replace(tools=[{"name": "f"}])], ("input.note",))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "Be nice to all.", "question": Q, "chosen": YES, "rejected": NO}, {"prompt": "question"}),
        ({"prompt": "Be nice to all.", "instruction": Q, "chosen": YES, "rejected": NO}, {"prompt": "instruction"}),
        (
            {"prompt": Q, "system": "Be nice to all.", "persona": "s", "chosen": YES, "rejected": NO},
            {"system": "persona"},
        ),
    ],
)
def test_a_text_in_whose_place_another_column_is_read_is_refused_or_left_out_knowingly(row, columns):
    (refused,) = read_row(row, Reading(columns)).pairs
    (old,) = columns
    assert refused.kind == "unread column" and f'data.ignore = ["{old}"]' in refused.reason
    (pair,), unread = read_row(row, Reading(columns, ignore=(old,)))
    assert (pair.chosen, unread) == ([said(YES)] if old == "system" else YES, ())
    assert pair.prompt == ([{"role": "system", "content": "s"}, user(Q)] if old == "system" else Q)
    assert read_row({**row, old: Q if old == "prompt" else ""}, Reading(columns)) == ([pair], ())


def test_an_answer_in_whose_place_another_column_is_read_is_counted():
    row = {"prompt": Q, "chosen": "An older answer.", "better": YES, "rejected": NO}
    assert read_row(row, Reading({"chosen": "better"})) == ([TEXT], ("chosen",))
    row = {"prompt": Q, "response_a": NO, "response_b": YES, "winner": "a", "label": "b"}
    assert read_row(row, Reading({"winner": "label"})) == ([TEXT], ("winner",))
    row = {"prompt": Q, "responses": [NO, YES], "scores": [2, 1], "votes": [1, 2]}
    assert read_row(row, Reading({"scores": "votes"})) == ([TEXT], ("scores",))
    row = {"prompt": Q, "chosen": NO, "rejected": YES}
    assert read_row(row, Reading({"chosen": "rejected", "rejected": "chosen"})) == ([TEXT], ())
    row = {"prompt": {"text": Q}, "chosen": {"text": YES}, "rejected": {"text": NO}}
    assert read_row(row, Reading({name: f"{name}.text" for name in row})) == ([TEXT], ())


def test_tools_beside_the_prompt_do_not_hide_those_of_the_row():
    row = {"in": {"said": [user(Q)], "tools": [{"name": "f"}]}, "tools": [{"name": "g"}], "chosen": YES, "rejected": NO}
    (refused,) = read_row(row, Reading({"prompt": "in.said"})).pairs
    assert 'data.ignore = ["in.tools"]' in refused.reason
    found = read_row(row, Reading({"prompt": "in.said"}, ignore=("in.tools",)))
    assert found == ([CHAT._replace(tools=[{"name": "g"}])], ())


def test_options_of_the_template_that_a_row_carries():
    row = {"prompt": [user(Q)], "chosen": [said(YES)], "rejected": [said(NO)]}
    options = {"enable_thinking": False, "null": None}
    (pair,) = read_row({**row, "chat_template_kwargs": options}).pairs
    assert pair == CHAT._replace(options={"enable_thinking": False})


@pytest.mark.parametrize("field", ["weight", "loss_weight", "train", "loss_mask"])
def test_turns_that_are_not_scored(field):
    side = [said("Hm.", **{field: 0}), user("So?")]
    row = {"prompt": [user(Q)], "chosen": [*side, said(YES, **{field: 1})], "rejected": [*side, said(NO)]}
    (pair,) = read_row(row).pairs
    assert pair.chosen == [said("Hm.", scored=False), user("So?"), said(YES)]
    (pair,) = read_row({**row, "chosen": [said("Hm."), user("So?"), said(YES)]}, Reading(scored="last")).pairs
    assert [message.get("scored", True) for message in pair.chosen] == [False, True, True]
    (refused,) = read_row({**row, "rejected": [said(NO, **{field: 0})]}).pairs
    assert "no turn of 'rejected' is scored" in refused.reason
    (refused,) = read_row({**row, "rejected": [said(NO, **{field: 0.5})]}).pairs
    assert f"has {field} = 0.5" in refused.reason


# Messages of other makers


def test_calls_thoughts_and_results_in_parts():
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}
    asked = [user(Q), said([use]), user([{"type": "tool_result", "tool_use_id": "t", "content": "4"}])]
    thought = said([{"type": "thinking", "thinking": "Two and two."}, {"type": "text", "text": YES}])
    (pair,) = read_row({"prompt": asked, "chosen": [thought], "rejected": [said(NO)]}).pairs
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tool = {"role": "tool", "content": "4", "tool_call_id": "t"}
    assert pair.prompt == [user(Q), said("", tool_calls=[call]), tool]
    assert pair.chosen == [said(YES, reasoning_content="Two and two.")]


def test_a_call_as_a_turn_of_its_own():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    row = {
        "conversations": [human(Q), call, {"from": "observation", "value": "4"}],
        "chosen": gpt(YES),
        "rejected": gpt(NO),
    }
    (pair,) = read_row(row).pairs
    made = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert pair.prompt == [user(Q), said("", tool_calls=[made]), {"role": "tool", "content": "4"}]
    (refused,) = read_row({**row, "conversations": [human(Q), {"from": "function_call", "value": "f(1)"}]}).pairs
    assert "no JSON object with the name of a function" in refused.reason


def test_roles_of_ms_swift_and_parts_of_openais_responses():
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'}
    asked = [user([{"type": "input_text", "text": Q}]), call, {"role": "tool_response", "content": "4"}]
    row = {"prompt": asked, "chosen": [said([{"type": "output_text", "text": YES}])], "rejected": [said(NO)]}
    (pair,) = read_row(row).pairs
    made = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert pair.prompt == [user(Q), said("", tool_calls=[made]), {"role": "tool", "content": "4"}]
    assert pair[1:3] == ([said(YES)], [said(NO)])


def test_a_system_text_in_parts_and_a_request_with_the_choice_of_a_tool():
    row = {
        "prompt": [user(Q)],
        "chosen": [said(YES)],
        "rejected": [said(NO)],
        "system": [{"text": "Be "}, {"text": "short."}],
    }
    assert read_row(row).pairs == [CHAT._replace(prompt=[{"role": "system", "content": "Be short."}, user(Q)])]
    given = {"messages": [user(Q)], "tool_choice": "auto"}
    row = {"input": given, "preferred_output": [said(YES)], "non_preferred_output": [said(NO)]}
    assert read_row(row) == ([CHAT], ())


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": "x"}, {"type": "input_audio"}])
def test_images_are_refused(part):
    row = {"prompt": [user([part, {"type": "text", "text": Q}])], "chosen": [said(YES)], "rejected": [said(NO)]}
    (refused,) = read_row(row).pairs
    assert "part that is not text: 1 of 2" in refused.reason and "text alone" in refused.reason
    (refused,) = read_row({"prompt": Q, "chosen": YES, "rejected": NO, "images": ["a.png"]}).pairs
    assert refused.kind == "images"


def test_an_answer_that_is_a_list_as_text_is_an_answer():
    for answer in ('["a", "b"]', '[{"value": 1}]', "[{'content': 1}]"):
        row = {"prompt": Q, "chosen": answer, "rejected": NO}
        assert read_row(row).pairs == [PreferencePair(Q, answer, NO)]


def test_two_strings_beside_another_text_are_no_implicit_prompt():
    """The other column may be the prompt under a name that nobody knows; the refusal proposes it."""
    row = {"chosen": "It is four.", "rejected": "It is five.", "task_text": "What is two and two?"}
    (refused,) = read_row(row).pairs
    assert 'data.columns = { prompt = "task_text" }' in refused.reason


# Rows of no known layout, and the line that reads them.
REFUSED = [
    ({"question": Q, "better": YES, "worse": NO}, '{ prompt = "question", chosen = "better", rejected = "worse" }'),
    ({"prompt": Q, "chosen_response": YES, "rejected_response": NO},
     '{ chosen = "chosen_response", rejected = "rejected_response" }'),
    ({"problem": Q, "answers": {"win": YES, "lose": NO}},
     '{ prompt = "problem", chosen = "answers.win", rejected = "answers.lose" }'),
    ({"instruction": Q, "output": [YES, NO]}, '{ chosen = "output.0", rejected = "output.1" }'),
    ({"prompt": Q, "chosen": [YES], "rejected": [NO, "Five."]},
     '{ chosen = "chosen.0", rejected = "rejected.0" }'),
    ({"question": Q, "pos_answer": {"answer": YES, "score": 1}, "neg_answer": {"answer": NO, "score": 0}},
     '{ prompt = "question", chosen = "pos_answer.answer", rejected = "neg_answer.answer" }'),
    ({"Prompt": Q, "Chosen": YES, "Rejected": NO},
     '{ prompt = "Prompt", chosen = "Chosen", rejected = "Rejected" }'),
    ({"task": "Sums", "trajectory": [human(Q)], "chosen": YES, "rejected": NO}, '{ prompt = "trajectory" }'),
    ({"prompt": Q, "candidates": [{"text": YES, "rating": 4}, {"text": NO, "rating": 1}]},
     '{ completions = "candidates" }'),
    ({"query": Q, "outputs": [NO, YES], "rewards": [0.1, 0.9]},
     '{ prompt = "query", completions = "outputs", scores = "rewards" }'),
    ({"prompt": Q, "responses": [NO, YES], "rankings": [2, 1]}, '{ ranks = "rankings" }'),
    ({"prompt": Q, "responses": [NO, YES], "best_index": 1},
     '{ winner = "best_index" } and data.verdict = "index"'),
    ({"prompt": Q, "response_a": NO, "response_b": YES, "label": "B"}, '{ winner = "label" }'),
    ({"prompt": Q, "answer_a": YES, "answer_b": NO, "label": 0},
     '{ response_a = "answer_a", response_b = "answer_b", winner = "label" }'),
    ({"schemaVersion": "bedrock-conversation-2024", "messages": [user(Q)],
      "preferred": [said(YES)], "nonPreferred": [said(NO)]},
     '{ prompt = "messages", chosen = "preferred", rejected = "nonPreferred" }'),
]  # fmt: skip


def test_a_history_beside_a_prompt_is_refused_with_the_line_that_reads_both():
    row = {"prompt": Q, "history": [["Hello?", "Yes."]], "chosen": YES, "rejected": NO}
    (refused,) = read_row(row).pairs
    assert 'data.columns = { instruction = "prompt" } reads it' in refused.reason
    (pair,) = read_row(row, Reading({"instruction": "prompt"})).pairs
    assert [message["content"] for message in pair.prompt] == ["Hello?", "Yes.", Q]


def columns_of(line):
    return tomllib.loads(f"columns = {line.partition(' and ')[0]}")["columns"]


@pytest.mark.parametrize(("row", "line"), REFUSED)
def test_a_refusal_prints_the_line_that_reads_the_row(row, line):
    (refused,) = read_row(row).pairs
    assert f"data.columns = {line}" in refused.reason
    verdict = "index" if row.get("label") == 0 or "index" in line else None
    (pair,) = read_row(row, Reading(columns_of(line), verdict)).pairs
    assert [side if isinstance(side, str) else side[0]["content"] for side in pair[:3]] == [Q, YES, NO]


@pytest.mark.parametrize(
    "row",
    [
        {"question_body": Q, "answer1_body": YES, "answer2_body": NO, "score": [{"score": 8}, {"score": 2}]},
        {"instruction": Q, "output": [[YES, 1], [NO, 2]]},
        {"chosen": [Q, YES], "rejected": [Q, NO]},
        {"messages": [user(Q), said(YES)], "label": True},
    ],
)
def test_a_refusal_prints_no_line_where_it_would_read_something_else(row):
    (refused,) = read_row(row).pairs
    assert isinstance(refused, Rejection) and "data.columns = " not in refused.reason
