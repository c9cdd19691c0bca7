"""Pairs to token ids: the boundary, the end token, truncation. Loading tokenizers is in test_tokenizers.py."""

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from dpo.text.encode import encode_all
from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.render import Span, TemplateMissing
from dpo.text.tokenize import Rules, split_completion, tokenize_pair
from dpo.text.tokenizers import load_tokenizer
from tests.places import DATA

GPT2 = DATA / "tokenizers" / "gpt2"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"no GPT-2 vocabulary in {GPT2}")

USER = {"role": "user", "content": "Hi"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
CHAT = PreferencePair([USER], [YES], [NO])


def merging_tokenizer(template=None):
    """Letters a, b, c and one merge: "ab" is one token. Ids: a 0, b 1, c 2, ab 3, <s> 4, </s> 5."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "<s>": 4, "</s>": 5}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    if template:
        backend.post_processor = processors.TemplateProcessing(template, special_tokens=[("<s>", 4), ("</s>", 5)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def tokens(pair, tokenizer=None, max_length=1000, truncation="keep_start"):
    return tokenize_pair(tokenizer or merging_tokenizer(), pair, Rules(max_length, truncation))


def encode(tokenizer, text, special):
    (ids,) = encode_all(tokenizer, [text], special)
    return ids


def encode_completion(tokenizer, prompt, completion, special):
    """The prompt's ids, the completion's, and whether they were encoded apart."""

    def joined(text):
        return encode(tokenizer, text, special)

    spans = [Span(completion, True)]
    ids, mask, apart = split_completion(joined, lambda text: encode(tokenizer, text, False), prompt, spans)
    assert mask == [True] * len(ids)
    return joined(prompt), ids, apart


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


# The boundary


def test_where_the_prompt_is_a_prefix_the_rest_is_the_completion():
    """Jointly, "c" + "ab" is c, ab."""
    assert encode_completion(merging_tokenizer(), "c", "ab", special=False) == ([2], [3], False)


def test_where_a_merge_crosses_the_boundary_the_two_are_encoded_apart():
    """Jointly, "ca" + "b" is c, ab, which does not begin with c, a."""
    assert encode_completion(merging_tokenizer(), "ca", "b", special=False) == ([2, 0], [1], True)


def test_a_completion_that_adds_nothing_jointly_is_encoded_apart():
    """This tokenizer has no unknown token and drops what it does not know."""
    assert encode_completion(merging_tokenizer(), "c", "xyz", special=False) == ([2], [], True)


def test_the_joint_ids_are_used_and_not_those_of_the_completion_alone():
    """With a begin token in front of every text, the completion must not get its own."""
    assert encode_completion(merging_tokenizer("<s> $A"), "c", "ab", special=True) == ([4, 2], [3], False)
    assert encode_completion(merging_tokenizer("<s> $A"), "ca", "b", special=True) == ([4, 2, 0], [1], True)


@pytest.mark.parametrize(
    ("pair", "apart"), [(("c", "b", "a"), False), (("a", "b", "c"), True), (("a", "c", "b"), True)]
)
def test_a_pair_is_apart_if_one_of_its_sides_is(pair, apart):
    result = tokens(PreferencePair(*pair))
    assert result.apart is apart
    letters = {"a": 0, "b": 1, "c": 2}
    assert [result.prompt_ids, result.chosen_ids, result.rejected_ids] == [
        [letters[pair[0]]],
        [letters[pair[1]], 5],
        [letters[pair[2]], 5],
    ]


@needs_gpt2
@pytest.mark.parametrize(
    ("prompt", "completion", "apart"),
    [
        ("What is it?", " A cat.", False),
        ("Question: un", "happy people", True),  # no blank between: "un" and "happy" are one word jointly
        ("Passage.\n\n", "Answer", True),  # "\n\n" is one token at the end of a text, two before a word
        ("Passage.\n", "Answer", False),
    ],
)
def test_the_boundary_of_gpt2(prompt, completion, apart):
    tokenizer = load_tokenizer(str(GPT2))
    prompt_ids, completion_ids, was_apart = encode_completion(tokenizer, prompt, completion, special=True)
    joined = tokenizer(prompt + completion)["input_ids"]
    assert was_apart is apart
    assert prompt_ids == tokenizer(prompt)["input_ids"]
    assert (prompt_ids + completion_ids == joined) is not apart
    assert text_of(tokenizer, prompt_ids + completion_ids) == prompt + completion
    pair = tokens(PreferencePair(prompt, completion, completion + "!"), tokenizer)
    assert pair.apart is apart
    assert pair.chosen_ids == [*completion_ids, tokenizer.eos_token_id]


# The end token


@pytest.mark.parametrize("template", [None, "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("ending", ["", "</s>"])
def test_a_text_ends_exactly_once(template, ending):
    """Whether or not the text, or the tokenizer by itself, puts an end token there."""
    tokenizer = merging_tokenizer(template)
    pair = tokens(PreferencePair("c", "ab" + ending, "b" + ending), tokenizer)
    begin = [4] if template and "<s>" in template else []
    assert pair.prompt_ids == [*begin, 2]
    assert pair.chosen_ids == [3, 5]
    assert pair.rejected_ids == [1, 5]
    assert pair.chosen_mask == [True, True]  # the end token is scored: a policy must learn to stop


def test_a_prompt_gets_no_end_token():
    tokenizer = merging_tokenizer("<s> $A </s>")
    assert tokenizer("c")["input_ids"] == [4, 2, 5]
    assert encode(tokenizer, "c", special=True) == [4, 2]
    assert encode(tokenizer, "c", special=False) == [2]


def test_chatml_ends_with_its_own_end_token_where_that_is_the_end():
    """The template writes <|im_end|> and a newline; nothing is added behind them."""
    tokenizer = load_tokenizer("bytes", eos_token="<|im_end|>", chat_template="chatml")
    pair = tokens(CHAT, tokenizer)
    assert text_of(tokenizer, pair.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(tokenizer, pair.chosen_ids) == "yes<|im_end|>\n"
    assert text_of(tokenizer, pair.rejected_ids) == "no<|im_end|>\n"
    assert pair.chosen_ids.count(tokenizer.eos_token_id) == 1
    assert not pair.apart


def test_chatml_gets_the_end_token_where_that_is_another():
    tokenizer = load_tokenizer("bytes", chat_template="chatml")
    pair = tokens(CHAT, tokenizer)
    assert text_of(tokenizer, pair.chosen_ids) == "yes<|im_end|>\n<eos>"
    assert pair.chosen_ids.count(tokenizer.eos_token_id) == 1


# Truncation: prompt "cc" (2 tokens), chosen "ccc" + end (4), rejected "a" + end (2)

PAIR = PreferencePair("cc", "ccc", "a")


def test_a_pair_that_fits_is_not_cut():
    for truncation in ("keep_start", "keep_end", "drop"):
        pair = tokens(PAIR, max_length=6, truncation=truncation)
        assert pair.prompt_ids == [2, 2]
        assert (pair.chosen_ids, pair.rejected_ids) == ([2, 2, 2, 5], [0, 5])
        assert not pair.cut


def test_keep_start_cuts_the_completions_end():
    pair = tokens(PAIR, max_length=4, truncation="keep_start")
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == ([2, 2], [2, 2], [0, 5])
    assert (pair.chosen_mask, pair.rejected_mask) == ([True] * 2, [True] * 2)
    assert pair.cut


def test_keep_end_cuts_the_prompts_beginning():
    pair = tokens(PreferencePair("bc", "ccc", "a"), max_length=5, truncation="keep_end")
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == ([2], [2, 2, 2, 5], [0, 5])
    assert pair.cut


@pytest.mark.parametrize(
    ("pair", "max_length", "truncation", "reason"),
    [
        (PAIR, 5, "drop", "6 tokens, and data.max_length is 5"),
        (PAIR, 2, "keep_start", "the prompt has 2 tokens, and data.max_length is 2"),
        (PAIR, 4, "keep_end", "a completion leaves no room for the prompt within data.max_length = 4"),
        (PreferencePair("c", "ab", "aba"), 2, "keep_start", "the same after truncation"),
        (PreferencePair("c", "ab", "ab</s>"), 9, "keep_start", "the same tokens"),
    ],
)
def test_what_cannot_be_kept_says_why(pair, max_length, truncation, reason):
    rejection = tokens(pair, max_length=max_length, truncation=truncation)
    assert isinstance(rejection, Rejection)
    assert reason in rejection.reason


def test_a_prompt_without_tokens_is_rejected():
    assert tokens(PreferencePair("xyz", "a", "b")) == Rejection("the prompt has no tokens", "empty side")


# Chat templates


def test_messages_need_a_template():
    with pytest.raises(TemplateMissing, match="no chat template") as error:
        tokens(CHAT, load_tokenizer("bytes"))
    assert 'chat_template = "chatml"' in str(error.value)  # what to do


def test_strings_need_no_template():
    assert tokens(PAIR).prompt_ids == [2, 2]


def test_a_template_that_changes_the_prompt_afterwards_is_refused():
    """It writes how many messages there are, so the prompt's own text is no prefix of the whole."""
    template = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    rejection = tokens(CHAT, load_tokenizer("bytes", chat_template=template))
    assert rejection == Rejection("the chat template renders the prompt differently once 'chosen' follows", "template")


def test_the_systems_message_and_several_turns_are_rendered_in_order():
    tokenizer = load_tokenizer("bytes", eos_token="<|im_end|>", chat_template="chatml")
    system = {"role": "system", "content": "Be short."}
    pair = tokens(PreferencePair([system, USER, NO, USER], [YES], [NO]), tokenizer)
    assert text_of(tokenizer, pair.prompt_ids) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
