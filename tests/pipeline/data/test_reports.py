"""Faults that users of other trainers have reported, on rows like theirs; each name says where."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo.text.encode import encode_all
from dpo.text.pairs import PreferencePair, read_row
from dpo.text.rejection import Rejection
from dpo.text.shapes import Reading
from dpo.text.strings import MESSAGES, mended
from dpo.text.tokenize import Rules, tokenize_pair
from dpo.text.tokenizers import CHATML, byte_tokenizer
from pipeline.data.rows import read_rows
from pipeline.store.cache import sequence_key
from tests.dpo.text.kinds import byte_pairs, sentencepiece, wrap
from tests.dpo.text.test_kinds import INST
from tests.dpo.text.test_templates import says, template_of, user
from tests.pipeline.data.test_shapes import lines_in

Q, GOOD, BAD = "Which river runs through Vienna?", "The Danube.", "The Rhine, I think."
LATER = user("And through Basel?")
TOWN = {"type": "object", "properties": {"town": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": TOWN}}
SHORT = Rules(32)


def row(chosen=None, rejected=None, **more):
    return {"prompt": [user(Q)], "chosen": chosen or [says(GOOD)], "rejected": rejected or [says(BAD)], **more}


def called(arguments):
    return says("", tool_calls=[{"type": "function", "function": {"name": "find", "arguments": arguments}}])


def read(fields, reading=Reading()):  # noqa: B008
    (pair,) = read_row(fields, reading).pairs
    return pair


def encoded(fields, template, tokenizer=None, end="<|im_end|>", **options):
    """The tokenizer, and the pair of a row as its template renders it."""
    tokenizer = tokenizer or byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.chat_template = template if "{" in template else template_of(template)
    found = tokenize_pair(tokenizer, read(fields), Rules(4096, template_options=options))
    assert not isinstance(found, Rejection), found
    return tokenizer, found


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def chosen(*args, **more):
    tokenizer, pair = encoded(*args, **more)
    return text(tokenizer, pair.chosen_ids)


def lengths(pair, rules=SHORT):
    found = tokenize_pair(byte_tokenizer(), PreferencePair(*pair), rules)
    return found.reason if isinstance(found, Rejection) else [len(ids) for ids in found[:3]]


# Begin, end and boundary


@pytest.mark.parametrize("scheme", ["first", "legacy", "always", "never"])
def test_trl_2054_a_template_that_ends_with_a_blank(scheme):
    tokenizer, pair = encoded(row(), INST, wrap(sentencepiece(scheme)), "</s>")
    whole = tokenizer.backend_tokenizer.decode(pair.prompt_ids + pair.chosen_ids, skip_special_tokens=False)
    (joint,) = encode_all(tokenizer, [f"<s>[INST] {Q} [/INST] {GOOD}</s>"], special=False)
    assert whole == tokenizer.backend_tokenizer.decode(joint, skip_special_tokens=False)


def test_trl_4481_one_end_token_behind_a_templates_own():
    tokenizer, pair = encoded(row(), "qwen2_5")
    assert pair.chosen_ids.count(tokenizer.eos_token_id) == 1


def test_axolotl_1616_no_begin_token_in_front_of_the_answers():
    begun = wrap(byte_pairs("<s> $A"))
    pair = tokenize_pair(begun, PreferencePair("Q:", " yes", " no"), SHORT)
    assert pair.prompt_ids.count(begun.bos_token_id) == 1
    assert begun.bos_token_id not in pair.chosen_ids + pair.rejected_ids


def test_nemo_rl_855_one_begin_token_of_template_and_tokenizer():
    begun, pair = encoded(row(), "{{ bos_token }}" + CHATML, wrap(byte_pairs("<s> $A")), "</s>")
    assert pair.prompt_ids.count(begun.bos_token_id) == 1


def test_trl_1885_a_tokenizer_without_a_begin_token():
    pair = tokenize_pair(byte_tokenizer(), PreferencePair("Q:", " yes", " no"), SHORT)
    assert None not in pair.prompt_ids and pair.prompt_ids == byte_tokenizer()("Q:")["input_ids"]


# Roles, turns and layouts


def test_trl_1640_and_1687_strings_can_be_read_as_messages():
    """What prepare and the doctor say of strings that go past a template is tested where they say it."""
    pair = mended(read({"prompt": Q, "chosen": GOOD, "rejected": BAD}), MESSAGES).pair
    assert pair == PreferencePair([user(Q)], [says(GOOD)], [says(BAD)])


def test_trl_2385_a_system_column_of_messages_and_a_rejected_answer_of_the_user():
    brief = [{"role": "system", "content": "Be brief."}]
    assert read(row(system=brief)).prompt == [*brief, user(Q)]
    assert "must be a text or messages of the system" in read(row(system=[user("Be brief.")])).reason
    assert read(row(rejected=[user(BAD)])).reason.endswith("it has: user")


def test_axolotl_1645_and_2647_all_turns_of_a_prompt():
    last = {"chosen": says("The Rhine."), "rejected": says("None.")}
    several = {side: [user(Q), says(GOOD), LATER, answer] for side, answer in last.items()}
    assert read(several).prompt == [user(Q), says(GOOD), LATER]


def test_trl_6960_one_side_is_the_beginning_of_the_other():
    more = {"chosen": [says(GOOD)], "rejected": [says(GOOD), LATER, says("The Rhine.")]}
    pair = read({side: [user(Q), *answers] for side, answers in more.items()})
    assert [len(side) for side in pair[:3]] == [1, 1, 3]


def test_llamafactory_1913_lists_of_ranked_answers():
    ranked = {"instruction": Q, "output": [[GOOD, 1], [BAD, 2]]}
    assert "Write the answers in 'output' as texts, or as objects with a text and a score" in read(ranked).reason
    plain = {"instruction": Q, "output": [GOOD, BAD]}
    columns = lines_in(read(plain).reason)["columns"]
    assert read(plain, Reading(columns))[:3] == (Q, GOOD, BAD)


def test_llamafactory_4717_answers_within_objects():
    nested = {"question": Q, "pos_answer": {"answer": GOOD, "score": 1.0}, "neg_answer": {"answer": BAD, "score": 0.0}}
    columns = lines_in(read(nested).reason)["columns"]
    assert read(nested, Reading(columns))[:3] == (Q, GOOD, BAD)


def test_open_instruct_617_the_last_turn_alone_is_scored():
    several = row([says(GOOD), LATER, says("The Rhine.")])
    tokenizer, pair = encoded(several, CHATML)
    scored = [token for token, mask in zip(pair.chosen_ids, pair.chosen_mask, strict=True) if mask]
    assert GOOD in text(tokenizer, scored) and "The Rhine." in text(tokenizer, scored)
    last = tokenize_pair(tokenizer, read(several, Reading(scored="last")), Rules(4096))
    scored = [token for token, mask in zip(last.chosen_ids, last.chosen_mask, strict=True) if mask]
    assert GOOD not in text(tokenizer, scored) and "The Rhine." in text(tokenizer, scored)


def test_llamafactory_9630_a_message_is_masked():
    pair = read(row([says(GOOD, loss_mask=0), LATER, says("The Rhine.")]))
    assert [message.get("scored", True) for message in pair.chosen] == [False, True, True]


# Lengths


@pytest.mark.parametrize(
    ("pair", "rules", "found"),
    [
        (("x" * 50, "yes", "no"), SHORT, "the prompt has 50 tokens, and data.max_length is 32"),  # trl#5662
        (("xx", "y" * 60, "no"), SHORT, [2, 30, 3]),  # trl#6548
        (("x" * 60, "y" * 20, "no"), Rules(32, "keep_end"), [11, 21, 3]),  # trl#3382
        (("xx", "y" * 60 + "a", "y" * 60 + "b"), SHORT, "chosen and rejected are the same after truncation"),
    ],  # the last one: OpenRLHF#1311
)
def test_lengths(pair, rules, found):
    assert lengths(pair, rules) == found


# Thoughts, calls and tools


def test_automodel_2348_and_cookbook_378_thoughts_beside_the_content():
    written = chosen(row([says(GOOD, reasoning_content="Hm.")]), "qwen3")
    assert written.startswith(f"<think>\nHm.\n</think>\n\n{GOOD}")


def test_ms_swift_4857_empty_thoughts_are_not_scored_if_thinking_is_off():
    assert chosen(row(), "qwen3").startswith("<think>\n\n</think>")
    assert chosen(row(), "qwen3", enable_thinking=False).startswith(GOOD)


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "llama3_1"])
@pytest.mark.parametrize("arguments", ['{"town": "Vienna"}', {"town": "Vienna"}, {"town": "Vienna", "river": None}])
def test_axolotl_3136_and_2909_and_ms_swift_6467_calls_have_one_form(template, arguments):
    """Arguments as JSON text, as an object, and with what Arrow adds to it."""
    written = chosen(row([called(arguments)], tools=[TOOL]), template)
    assert '{"town": "Vienna"}' in written and "river" not in written and "\\" not in written


def test_trl_5307_tools_of_the_type_json(tmp_path):
    path = tmp_path / "tools.parquet"
    table = pa.table({name: [json.dumps(value)] for name, value in row(tools=[TOOL]).items()})
    pq.write_table(pa.table([column.cast(pa.string()).combine_chunks().cast(pa.json_()) for column in table.columns],
                            names=table.column_names), path)  # fmt: skip
    (found,) = read_rows(str(path))
    assert read(found.value) == read(row(tools=[TOOL]))


def test_alignment_handbook_123_an_empty_system_column_under_gemma():
    assert chosen(row(system=""), "gemma", end="<eos>").startswith(GOOD)


def test_trl_2423_and_6291_log_probs_are_kept_by_the_tokens():
    """What the reference has scored is found by what it has scored, not by the place of a row."""
    ones, two = np.ones(1), np.array([1, 2])
    assert sequence_key(two, np.array([3]), ones) == sequence_key(two.copy(), np.array([3]), ones)
    assert sequence_key(two, np.array([3]), ones) != sequence_key(two, np.array([4]), ones)
