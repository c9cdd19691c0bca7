"""Rows that are refused: the line that the refusal prints, applied to the row, reads what the row means."""

import pytest

from dpo.text.pairs import read_row
from dpo.text.rejection import Rejection
from dpo.text.shapes import Reading
from pipeline.config import Data
from tests.dpo.text.test_layouts import human, said, user
from tests.pipeline.data.test_shapes import lines_in

Q, YES, NO = "What is two and two?", "It is four, I say.", "It is five, I say."
SYSTEM = "Be kind to me, please."
TALK = f"\n\nHuman: {Q}\n\nAssistant: "
SIDES = {"chosen": YES, "rejected": NO}
ANSWERS = {"output_1": NO, "output_2": YES}
BEDROCK = {
    "schemaVersion": "bedrock-conversation-2024",
    "system": [{"text": SYSTEM}],
    "messages": [{"role": "user", "content": [{"text": Q}]}],
    "preferred": [{"role": "assistant", "content": [{"text": YES}]}],
    "nonPreferred": [{"role": "assistant", "content": [{"text": NO}]}],
}

# A row, the line that is printed, and what the prompt is then if it is more than the question.
READ = [
    # The prompt is no system text, comment, template or title
    ({"system_prompt": SYSTEM, "user_prompt": Q, **SIDES}, '{ prompt = "user_prompt" }', [SYSTEM, Q]),
    ({"system_prompt": SYSTEM, "user_prompt": Q, "chosen_response": YES, "rejected_response": NO},
     '{ prompt = "user_prompt", chosen = "chosen_response", rejected = "rejected_response" }', [SYSTEM, Q]),
    ({"systemPrompt": SYSTEM, "userPrompt": Q, **SIDES}, '{ prompt = "userPrompt", system = "systemPrompt" }',
     [SYSTEM, Q]),
    ({"chosen": TALK + YES, "rejected": TALK + NO, "comment": "This is about a sum."}, '["comment"]', [Q]),
    ({"question": Q, "chosen": TALK + YES, "rejected": TALK + NO}, '{ prompt = "question" }', [Q]),
    ({"negative_prompt": "ugly and very bad things", "text_prompt": Q, "better": YES, "worse": NO},
     '{ prompt = "text_prompt", chosen = "better", rejected = "worse" } (\'negative_prompt\' would not be read)', [Q]),
    ({"title": "On two and two", "body": Q, "better": YES, "worse": NO},
     '{ prompt = "body", chosen = "better", rejected = "worse" } (\'title\' would not be read)', [Q]),
    ({"prompt_template": "Answer this now: {}", "user_question": Q, **SIDES}, '{ prompt = "user_question" }', [Q]),
    ({"source": Q, **SIDES, "lang": "de"}, '{ prompt = "source" } if that is the prompt', [Q]),
    # The first line reads the whole row
    ({"system": SYSTEM, "history": [["Hi", "Ho"]], "question": Q, "response_chosen": YES, "response_rejected": NO},
     '{ chosen = "response_chosen", rejected = "response_rejected" }', [SYSTEM, "Hi", "Ho", Q]),
    ({"system": "", "history": [], "question": Q, "response_chosen": YES, "response_rejected": NO},
     '{ chosen = "response_chosen", rejected = "response_rejected" }', [Q]),
    ({"question": Q, "chat_history": [["Hi", "Ho"]], "chosen_answer": YES, "rejected_answer": NO},
     '{ instruction = "question", history = "chat_history", chosen = "chosen_answer", rejected = "rejected_answer" }',
     ["Hi", "Ho", Q]),
    ({"System": SYSTEM, "Instruction": "What is", "Input": "two and two?", "Chosen": YES, "Rejected": NO},
     '{ instruction = "Instruction", input = "Input", chosen = "Chosen", rejected = "Rejected", system = "System" }',
     [SYSTEM, "What is\ntwo and two?"]),
    ({"query": Q, "pos": [YES], "neg": [NO, "It is six."]},
     '{ prompt = "query", chosen = "pos.0", rejected = "neg.0" } if the first', [Q]),
    ({"question": Q, "best_answer": YES, "correct_answers": [YES, "Four."], "incorrect_answers": [NO, "Six."]},
     '{ prompt = "question", chosen = "correct_answers.0", rejected = "incorrect_answers.0" } if the first', [Q]),
    ({"prompt": Q, "responses": [NO, YES], "scores": [0, 1], "chosen": YES}, '["chosen"]', [Q]),
    (BEDROCK, '{ prompt = "messages", chosen = "preferred", rejected = "nonPreferred" }', [SYSTEM, Q]),
    ({"info": {"id": "1", "post": None, "article": Q, "site": "cnn"}, "summaries": [{"text": NO}, {"text": YES}],
      "choice": 1}, '{ prompt = "info.article", completions = "summaries", winner = "choice" }', [Q]),
    # Prompts beside answers that are messages, and beside scored answers
    ({"context": [{"from": "human", "content": Q}], "chosen": [said(YES)], "rejected": [said(NO)]},
     '{ prompt = "context" }', [Q]),
    ({"dialogue": [user(Q)], "chosen": [said(YES)], "rejected": [said(NO)]}, '{ prompt = "dialogue" }', [Q]),
    ({"trajectory": [human(Q)], "chosen": [said(YES)], "rejected": [said(NO)]}, '{ prompt = "trajectory" }', [Q]),
    ({"prompt_messages": [user(Q)], "chosen": [said(YES)], "rejected": [said(NO)]}, '{ prompt = "prompt_messages" }',
     [Q]),
    ({"problem": Q, "chosen": [said(YES)], "rejected": [said(NO)]}, '{ prompt = "problem" }', [Q]),
    ({"input": [user(Q)], "chosen": [said(YES)], "rejected": [said(NO)]}, '{ prompt = "input" }', [Q]),
    ({"messages": [user(Q)], "chosen_response": said(YES), "rejected_response": said(NO), "tools": ['{"name": "f"}']},
     '{ prompt = "messages", chosen = "chosen_response", rejected = "rejected_response" }', [Q]),
    ({"conversation": [user(Q)], "completions": [{"text": NO, "score": 0}, {"text": YES, "score": 1}]},
     '{ prompt = "conversation" }', [Q]),
    ({"context": Q, "completions": [{"text": NO, "score": 0}, {"text": YES, "score": 1}]}, '{ prompt = "context" }',
     [Q]),
    ({"messages": [user(Q)], "candidates": [NO, YES], "ranks": [2, 1]},
     '{ prompt = "messages", completions = "candidates" }', [Q]),
    # Names of answers
    ({"prompt": Q, "chosen": {"text": YES}, "rejected": {"text": NO}},
     '{ chosen = "chosen.text", rejected = "rejected.text" }', [Q]),
    ({"prompt": Q, "response": YES, "rejected_response": NO},
     '{ chosen = "response", rejected = "rejected_response" }', [Q]),
    ({"instruction": Q, "output": YES, "rejected": NO}, '{ chosen = "output" }', [Q]),
    ({"prompt": Q, "preferred_completion": YES, "not_preferred_completion": NO},
     '{ chosen = "preferred_completion", rejected = "not_preferred_completion" }', [Q]),
    # Two answers and a verdict
    ({"prompt": Q, "author_a": "Jane Doe", "author_b": "John Roe", "answer_a": NO, "answer_b": YES, "label": 1},
     '{ response_a = "answer_a", response_b = "answer_b", winner = "label" }', [Q]),
    ({"prompt": Q, "model_a": "m", "model_b": "n", "model_a_response": NO, "model_b_response": YES,
      "winner": "model_b"}, '{ response_a = "model_a_response", response_b = "model_b_response" }', [Q]),
    ({"prompt": Q, "response_1": NO, "response_2": YES, "preferred": "response_2"},
     '{ response_a = "response_1", response_b = "response_2", winner = "preferred" } and '
     'data.verdict = { "response_1" = "a", "response_2" = "b" }', [Q]),
    ({"prompt": Q, "response_a": NO, "response_b": YES, "preferred": "response_b"}, '{ winner = "preferred" }', [Q]),
    ({"input_text": Q, "candidate_0": NO, "candidate_1": YES, "choice": 1},
     '{ prompt = "input_text", response_a = "candidate_0", response_b = "candidate_1", winner = "choice" } and '
     'data.verdict = "index"', [Q]),
    ({"prompt": Q, "completion_a": NO, "completion_b": YES, "overall_pref": "B-is-clearly-better"},
     'data.verdict = { "A-is-clearly-better" = "a", "B-is-clearly-better" = "b" }', [Q]),
    ({"prompt": Q, "answer_a": NO, "answer_b": YES, "verdict": "B>A"},
     'data.verdict = { "A>B" = "a", "B>A" = "b" } with an entry for every other word', [Q]),
    ({"prompt": Q, "response 1": NO, "response 2": YES, "label": 2},
     'winner = "label" } and data.verdict = { "1" = "a", "2" = "b" }', [Q]),
    ({"instruction": "What is", "input": "two and two?", "response1": NO, "response2": YES, "label": 2},
     'winner = "label" } and data.verdict = { "1" = "a", "2" = "b" }', ["What is\ntwo and two?"]),
    ({"input": Q, **ANSWERS, "label": 2},
     '{ prompt = "input", response_a = "output_1", response_b = "output_2", winner = "label" }', [Q]),
]  # fmt: skip


def reading_of(reason):
    """What the configuration makes of the lines that a refusal prints."""
    lines = lines_in(reason)
    assert lines, reason
    data = Data.model_validate({"train": "x", **lines})
    return Reading(data.columns, data.verdict, tuple(data.ignore))


def texts(side):
    return [side] if isinstance(side, str) else [message["content"] for message in side]


@pytest.mark.parametrize(("row", "line", "prompt"), READ, ids=[str(number) for number in range(len(READ))])
def test_the_printed_line_reads_the_row(row, line, prompt):
    (refused,) = read_row(row).pairs
    assert isinstance(refused, Rejection) and line in refused.reason
    (pair,) = read_row(row, reading_of(refused.reason)).pairs
    assert [texts(side) for side in pair[:3]] == [prompt, [YES], [NO]]


@pytest.mark.parametrize("row", [row for row, _, _ in READ], ids=[str(number) for number in range(len(READ))])
def test_the_order_of_the_columns_decides_nothing(row):
    turned = dict(reversed(row.items()))
    (refused,), (other,) = read_row(row).pairs, read_row(turned).pairs
    assert read_row(turned, reading_of(other.reason)).pairs == read_row(row, reading_of(refused.reason)).pairs


@pytest.mark.parametrize("name", ["pos", "rejected", "documents", "tags"])
def test_a_list_of_one_side_or_of_something_else_is_no_list_of_answers(name):
    (refused,) = read_row({"prompt": Q, name: [YES, NO]}).pairs
    assert isinstance(refused, Rejection) and lines_in(refused.reason) == {}


@pytest.mark.parametrize("name", ["response_lengths", "candidate_ids", "order", "losses", "num_tokens"])
def test_numbers_that_are_no_scores_are_not_proposed_as_scores(name):
    (refused,) = read_row({"prompt": Q, "responses": [YES, NO], name: [2, 1]}).pairs
    assert f'"{name}"' not in refused.reason
    assert 'data.columns = { chosen = "responses.0", rejected = "responses.1" } if the first' in refused.reason


@pytest.mark.parametrize("name", ["comment", "author", "prompt_template", "negative_prompt", "title", "systemText"])
def test_a_text_that_is_no_prompt_is_not_proposed_as_one(name):
    for sides in (SIDES, {"better": YES, "worse": NO}):
        (refused,) = read_row({name: "Some words about it all.", **sides}).pairs
        assert isinstance(refused, Rejection) and f'prompt = "{name}"' not in refused.reason


def test_answers_that_begin_alike_are_not_cut_by_a_line():
    """Without the other column the words "It is" would be their prompt."""
    (refused,) = read_row({**SIDES, "explanation": "Two and two make four."}).pairs
    assert isinstance(refused, Rejection) and lines_in(refused.reason) == {}


TWO = {"1": "a", "2": "b"}


@pytest.mark.parametrize(
    ("label", "offered"),
    [
        (0, [{"0": "tie", **TWO}, "index", {"1": "a", "0": "b"}]),
        (1, [TWO, "index", {"1": "a", "0": "b"}]),
        (2, [TWO, "negative-is-a", "positive-is-a"]),
        (-2, ["negative-is-a", "positive-is-a"]),
        (True, [{"true": "a", "false": "b"}, {"true": "b", "false": "a"}]),
    ],
)
def test_a_label_that_may_mean_several_things_is_left_to_the_user(label, offered):
    """Every reading is offered with what it would mean; none is chosen."""
    row = {"prompt": Q, **ANSWERS, "label": label}
    (refused,) = read_row(row).pairs
    assert refused.reason.endswith("the row alone does not tell which")
    printed = refused.reason.split("data.verdict = ")[1:]
    assert [lines_in(f"data.verdict = {line}")["verdict"] for line in printed] == offered
    assert all(" if " in line for line in printed)


@pytest.mark.parametrize("word", ["tie", "Draw", "equal", "no preference", "both_good", "tie (bothbad)", "Both bad"])
def test_a_tie_in_any_words_is_a_tie(word):
    row = {"prompt": Q, "response_a": YES, "response_b": NO, "winner": word}
    for verdict in (None, {"first": "a", "second": "b"}):
        assert [pair.kind for pair in read_row(row, Reading(verdict=verdict)).pairs] == ["tie"]


@pytest.mark.parametrize("word", ["A=B", "Both are alike", "A and B are equal"])
def test_words_that_may_say_a_tie_are_offered_as_one(word):
    (refused,) = read_row({"prompt": Q, "answer_a": YES, "answer_b": NO, "winner": word}).pairs
    assert f'data.verdict = {{ "{word}" = "tie" }} with an entry for every other word' in refused.reason


def test_the_name_of_a_model_is_no_tie():
    row = {"prompt": Q, "response_a": YES, "response_b": NO, "winner": "Tiefighter-13b"}
    assert [pair.kind for pair in read_row(row).pairs] == ["no pair"]
    (pair,) = read_row({**row, "model_a": "x", "model_b": "Tiefighter-13b"}).pairs
    assert pair.chosen == NO


@pytest.mark.parametrize(("first", "second"), [("True", "False"), ("1.0", "0.0"), (True, False)])
def test_marks_of_a_winner_may_be_words(first, second):
    marks = {"winner_model_a": first, "winner_model_b": second, "winner_tie": second}
    (pair,) = read_row({"prompt": Q, "response_a": YES, "response_b": NO, **marks}).pairs
    assert pair.chosen == YES


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": Q, "output": YES}, "A pair needs two answers to one prompt, and the row seems to have one"),
        ({"messages": [user(Q), said(YES)], "kto_tag": True}, "A label for a single answer is no preference"),
        ({"x": Q, "y": YES, "z": NO}, 'columns = { prompt = "NAME", chosen = "NAME", rejected = "NAME" }'),
        ({"prompt": Q, "completions": []}, "'completions' has no answers"),
        ({"instruction": Q, **ANSWERS, "preference": 1.03}, "No data.verdict reads 1.03, a number between 1 and 2"),
        ({"prompt": [user(Q)], "functions": "f(x)", "chosen": [said(YES)], "rejected": [said(NO)]},
         "'functions' is a string that is not JSON"),
    ],
)  # fmt: skip
def test_a_refusal_without_a_line_says_what_is_missing(row, reason):
    (refused,) = read_row(row).pairs
    assert reason in refused.reason and refused.kind != "tie" and lines_in(refused.reason) == {}


def test_a_further_line_keeps_what_is_written():
    """The columns that somebody wrote read a part of the row; the next refusal prints the line with them in it."""
    row = {"ask": Q, "better": YES, "worse": NO}
    (refused,) = read_row(row, Reading({"prompt": "ask"})).pairs
    assert 'data.columns = { chosen = "better", rejected = "worse", prompt = "ask" }' in refused.reason
    (pair,) = read_row(row, reading_of(refused.reason)).pairs
    assert pair[:3] == (Q, YES, NO)


def test_all_columns_that_stand_in_the_way_are_named_at_once():
    row = {"prompt": Q, "context": "The sum of numbers.", "documents": ["One is here."], **SIDES}
    (refused,) = read_row(row).pairs
    assert 'data.ignore = ["context", "documents"]' in refused.reason
    assert read_row(row, reading_of(refused.reason)).pairs[0][:3] == (Q, YES, NO)


def test_a_context_can_be_read_behind_the_prompt():
    row = {"prompt": Q, "context": "The sum of numbers.", **SIDES}
    (refused,) = read_row(row).pairs
    assert 'columns = { instruction = "prompt", input = "context" } under [data] reads it behind' in refused.reason
    (pair,) = read_row(row, Reading({"instruction": "prompt", "input": "context"})).pairs
    assert pair.prompt == f"{Q}\nThe sum of numbers."


def test_a_broken_row_gets_no_line():
    (refused,) = read_row({"prompt": Q, "chosen": None, "rejected": NO, "answer": YES}).pairs
    assert "data." not in refused.reason
