"""Texts to ids in pieces: a prompt that is encoded by itself gives the ids of the whole."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dpo.text.encode import GPT2, LLAMA3, QWEN2, Encoder, cuts_between_words, encode_all
from dpo.text.tokenizers import byte_tokenizer

MERGES = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("Ġ", "t"),
    ("i", "n"),
    ("in", "g"),
    ("o", "n"),
    ("Ġ", "a"),
    ("'", "s"),
]
MERGES += [("Ġ", "Ġ"), ("ĠĠ", "Ġ"), ("1", "2"), ("12", "3"), ("Ċ", "Ċ"), (".", "."), ("d", "on"), ("Ġt", "on")]


def tokenizer_of(pattern, begin=False):
    """A byte-level BPE with a few merges, which cuts words as GPT-2, Llama 3 or Qwen 2 do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in MERGES)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    if pattern == GPT2:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, rest])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    if begin:
        special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", special_tokens=special
        )
    return tokenizer


TOKENIZERS = {
    (name, begin): tokenizer_of(pattern, begin)
    for name, pattern in (("gpt2", GPT2), ("llama3", LLAMA3), ("qwen2", QWEN2))
    for begin in (False, True)
}
WORDS = [
    "the",
    "thing",
    " on",
    "don't",
    "it's",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "123",
    "12",
    ".",
    "...",
    "é",
    "中",
    "🦊",
    "</s>",
    "'",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12).map("".join)


@pytest.mark.parametrize("key", TOKENIZERS, ids=str)
@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(TEXTS, max_size=3))
@example("the thing on the", ["  thing", "'s"])
@example("the thing", [" on\n\n"])
def test_pieces_give_the_ids_of_the_whole(key, prompt, endings):
    tokenizer = TOKENIZERS[key]
    encoder = Encoder(tokenizer)
    assert encoder.cuts
    head = encoder.head(prompt)
    for text in (prompt, *(prompt + ending for ending in endings)):
        for special in (False, True):
            assert encoder(text, head, special) == encode_all(tokenizer, [text], special)[0]


def test_where_a_prompt_is_cut():
    """Before the last blank between two letters."""
    encoder = Encoder(TOKENIZERS["gpt2", False])
    assert [encoder.head(text) for text in ("a b c", "one two. 3", "onetwo", "", "a  b", "é b")] == [3, 3, 0, 0, 0, 0]
    assert encoder.head("a b" + "." * 1000) == 0  # too far back to be looked for


def test_a_prompt_is_encoded_once_for_its_answers():
    encoder = Encoder(TOKENIZERS["gpt2", False])
    prompt = "the thing on the thing"
    head = encoder.head(prompt)
    for text in (prompt, prompt + " one", prompt + " two"):
        encoder.want(text, head, False)
    assert list(encoder.wanted) == [(text, False) for text in (prompt[:head], " thing", " thing one", " thing two")]


def changed(**parts):
    """The GPT-2-like tokenizer with another part."""
    backend = Tokenizer.from_str(tokenizer_of(GPT2).backend_tokenizer.to_str())
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def with_token(**options):
    tokenizer = tokenizer_of(GPT2)
    tokenizer.add_tokens([AddedToken("<tool>", **options)])
    return tokenizer


def test_tokenizers_whose_words_are_not_known_are_not_cut():
    """They may join across words, or change the text before; a token may swallow the blank beside it."""
    odd = pre_tokenizers.Split(Regex(r"\w+ \w+"), behavior="isolated")
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert not cuts_between_words(changed(normalizer=normalizers.NFC()))
    assert not cuts_between_words(changed(pre_tokenizer=pre_tokenizers.Metaspace()))
    assert not cuts_between_words(changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert not cuts_between_words(changed(pre_tokenizer=pre_tokenizers.Sequence([odd, rest])))
    assert not cuts_between_words(byte_tokenizer())  # cuts nowhere: one token a byte, but nothing says so
    assert not any(cuts_between_words(with_token(**{name: True})) for name in ("lstrip", "rstrip", "single_word"))
    tokenizer = tokenizer_of(GPT2)
    tokenizer.add_tokens(["on the"])
    assert not cuts_between_words(tokenizer)
    assert cuts_between_words(with_token()) and cuts_between_words(tokenizer_of(LLAMA3))


def test_a_tokenizer_that_truncates_does_not():
    """A tokenizer.json may hold settings for truncation and padding."""
    tokenizer = tokenizer_of(GPT2)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert len(encode_all(tokenizer, ["the thing on"], False)[0]) > 2
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"] is None
