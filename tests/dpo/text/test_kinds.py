"""Prompt and completion decode to the text of both together, with one begin and one end token: twenty tokenizers."""

import json

import pytest

from dpo.text.encode import encode_all
from dpo.text.pairs import PreferencePair, read_pair
from dpo.text.rejection import Rejection
from dpo.text.tokenize import Rules, tokenize_pair, tokenize_pairs
from tests.dpo.text.kinds import CHANGES_TEXT, KINDS, kind, sentencepiece, wrap
from tests.places import DATA

WIDE = Rules(100_000)
CASES = [
    ("Q: Which river?\nA:", " The Danube.", " The Rhine."),
    ("Q: Which river? A: ", "The Danube.", "The Rhine."),
    ("Which river?\n", "The Danube.", "The Rhine."),
    ("The riv", "er is long.", "al is a town."),
    ("Which river?\n\n", "The Danube.", "\nThe Rhine."),
    ("The river is ", " long.", " a town."),
]
INST = (  # ends its question with a blank
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST] "
    "{% elif m.role == 'system' %}{{ m.content }} {% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def decoded(tokenizer, ids):
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def ends_once(tokenizer, ids, begins):
    """One end token, at the end (a template may write a line end behind it); one begin token, as the first, if any."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids.count(end) == 1 and end in ids[-2:]
    assert [at for at, token in enumerate(ids) if token == begin] == ([0] if begins else [])


@pytest.mark.parametrize("case", CASES, ids=[prompt for prompt, *_ in CASES])
@pytest.mark.parametrize("name", KINDS)
def test_a_text_arrives_whole(name, case):
    tokenizer, (prompt, *sides) = kind(name), case
    pair = tokenize_pair(tokenizer, PreferencePair(*case), WIDE)
    if name.startswith("WordPiece") and prompt == "The riv":  # it can tell no word from two
        assert isinstance(pair, Rejection) and pair.kind == "text changed"
        return
    assert not isinstance(pair, Rejection), pair
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    for side, ids in zip(sides, (pair.chosen_ids, pair.rejected_ids), strict=True):
        found = pair.prompt_ids + ids
        (joint,) = encode_all(tokenizer, [prompt + side], True)
        assert decoded(tokenizer, found) == decoded(tokenizer, [*joint, tokenizer.eos_token_id])
        ends_once(tokenizer, found, begins)
        if not name.startswith(CHANGES_TEXT):
            text = decoded(tokenizer, found[1:-1] if begins else found[:-1])
            assert text == prompt + side or text == " " + prompt + side  # a blank that it puts before every text


def test_dropout_is_off():
    tokenizer = kind("byte BPE, dropout in the file")
    pair = PreferencePair("Which river runs through Vienna?", " The Danube.", " No.")
    assert len({tuple(tokenize_pair(tokenizer, pair, WIDE).chosen_ids) for _ in range(5)}) == 1


@pytest.mark.parametrize("scheme", ["first", "legacy", "always", "never"])
def test_real_pairs_under_a_template_that_ends_in_a_blank(scheme):
    path = DATA / "sharegpt_dpo_en.json"
    if not path.exists():
        pytest.skip(f"no pairs in {path}")
    tokenizer = wrap(sentencepiece(scheme))
    tokenizer.chat_template = INST
    pairs = [read_pair(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    assert len(pairs) == 269
    changed = []
    for pair, found in zip(pairs, tokenize_pairs(tokenizer, pairs, WIDE), strict=True):
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template(pair.prompt + getattr(pair, side), tokenize=False)
            (joint,) = encode_all(tokenizer, [whole], False)
            if decoded(tokenizer, found.prompt_ids + getattr(found, f"{side}_ids")) != decoded(tokenizer, joint):
                changed.append(pair)
    assert not changed
