"""Every row of the real files is read as a pair, by its shape alone."""

from itertools import islice

import pytest

from dpo.text.pairs import PreferencePair, read_pair
from dpo.text.tokenize import Rules, tokenize_pair
from dpo.text.tokenizers import load_tokenizer
from pipeline.data.rows import read_rows
from tests.places import DATA

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real preference pairs are not on this machine")


FILES = {  # how many rows, and whether they are messages
    "tulu_human_pairs.jsonl.gz": (497, False),
    "qa_feedback.jsonl.gz": (1330, False),
    "sharegpt_dpo_en.json": (269, True),
    "messages_dpo_demo.jsonl": (10, True),
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_pair(name):
    count, chat = FILES[name]
    rows = list(read_rows(str(DATA / name)))
    pairs = [read_pair(row.value) for row in rows]
    assert len(pairs) == count
    assert all(isinstance(pair, PreferencePair) and pair.chat == chat for pair in pairs)


@pytest.mark.parametrize("name", ["gpt2", "small2k"])
@pytest.mark.parametrize("file", FILES)
def test_the_tokens_say_what_the_template_writes(file, name):
    """Twenty rows of each file: prompt and answer, decoded, are the template's own text for the whole conversation."""
    tokenizer = load_tokenizer(str(DATA / "tokenizers" / name), "<|im_end|>", "chatml")
    rules, compared = Rules(max_length=100_000), 0
    for row in islice(read_rows(str(DATA / file)), 20):
        pair = read_pair(row.value)
        tokens = tokenize_pair(tokenizer, pair, rules)
        for side in ("chosen", "rejected"):
            text = tokenizer.decode([*tokens.prompt_ids, *getattr(tokens, f"{side}_ids")])
            if pair.chat:
                whole = [*pair.prompt, *getattr(pair, side)]
                assert text == tokenizer.apply_chat_template(whole, tokenize=False)
                asked = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
                assert tokenizer.decode(tokens.prompt_ids) == asked
            else:
                assert text == row.value["prompt"] + row.value[side] + "<|im_end|>"
                assert tokenizer.decode(tokens.prompt_ids) == row.value["prompt"]
            compared += 1
    assert compared == 2 * min(20, FILES[file][0])


def test_what_was_said_is_what_the_row_holds():
    """The last turn of the conversation, and both answers, word for word."""
    for row in read_rows(str(DATA / "sharegpt_dpo_en.json")):
        pair = read_pair(row.value)
        assert [m["content"] for m in pair.prompt] == [m["value"] for m in row.value["conversations"]]
        assert [pair.chosen[0]["content"], pair.rejected[0]["content"]] == [
            row.value[side]["value"] for side in ("chosen", "rejected")
        ]
    for row in read_rows(str(DATA / "messages_dpo_demo.jsonl")):
        pair = read_pair(row.value)
        for side in ("chosen", "rejected"):
            texts = [part["value"] for m in row.value[f"{side}_messages"] for part in m["content"]]
            assert [m["content"] for m in [*pair.prompt, *getattr(pair, side)]] == texts
