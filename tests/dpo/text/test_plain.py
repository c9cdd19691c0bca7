"""A plain tokenizer gives what the tokenizer of transformers gives that it is the values of."""

import copy
import gzip
import json
import pickle
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dpo.text.plain import from_values, plain_values
from dpo.text.tokenizers import load_tokenizer
from tests.dpo.text.test_tokenize import merging_tokenizer
from tests.places import DATA

TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% if date %}{{ date }}{% endif %}"
    "{% for m in messages %}{{ bos_token or '' }}<{{ m.role }}>{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ m.reasoning_content or '' }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = [
    "",
    "a",
    "Hello, world . It 's",
    "é 日本語 🙂 \u0000",
    "<eos> <|endoftext|>",
    "  two \n\n tails \t",
    "x" * 3000,
]
TOOL = {"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
CHATS = [
    [{"role": "user", "content": "hi é <b>"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
    [{"role": "user", "content": "u"}, CALL, {"role": "tool", "content": "3"}],
    [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "reasoning": "because"}],
]


def word_piece():
    """A tokenizer that cleans up: blanks before punctuation go when ids are decoded."""
    words = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", ".", ",", "it", "'", "s", "##s", "a"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=True, **names)


def shared(name):
    folder = DATA / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in {folder.parent}")
    return load_tokenizer(str(folder), "<|endoftext|>", TOOLS)


MADE = {
    "bytes": lambda: load_tokenizer("bytes"),
    "bytes with names": lambda: load_tokenizer("bytes", "<stop>", TOOLS),
    "merging": lambda: merging_tokenizer("<s> $A </s>"),
    "word pieces": word_piece,
    "gpt2": lambda: shared("gpt2"),
    "small2k": lambda: shared("small2k"),
}


@pytest.fixture(params=MADE)
def both(request):
    theirs = MADE[request.param]()
    values = json.loads(json.dumps(plain_values(copy.deepcopy(theirs))))
    return theirs, pickle.loads(pickle.dumps(from_values(values)))


def texts():
    path = DATA / "tulu_human_pairs.jsonl.gz"
    if not path.is_file():
        return TEXTS
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:40]
    return TEXTS + [row[side] for row in rows for side in ("prompt", "chosen")]


def test_names_ids_and_size_are_the_same(both):
    theirs, ours = both
    for name in ("eos_token", "bos_token", "eos_token_id", "bos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.all_special_tokens) == [str(token) for token in theirs.all_special_tokens]
    assert (len(ours), ours.chat_template, ours.get_vocab()) == (len(theirs), theirs.chat_template, theirs.get_vocab())
    for token in [*list(theirs.get_vocab())[:50], "no such token"]:
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)


def test_the_backend_is_the_same_to_the_letter(both):
    """The fingerprint of the tokens is made of it."""
    theirs, ours = both
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_ids_and_texts_are_the_same(both):
    theirs, ours = both
    for text in texts():
        for special in (True, False):
            assert (
                ours(text, add_special_tokens=special)["input_ids"]
                == (theirs(text, add_special_tokens=special)["input_ids"])
            )
    draw = random.Random(0)
    rows = [[draw.randrange(len(theirs)) for _ in range(20)] for _ in range(100)]
    for ids in [theirs(text)["input_ids"] for text in texts()] + rows:
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def rendered(tokenizer, chat, options):
    """The text, or the error with its class."""
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def test_chats_are_rendered_the_same(both):
    theirs, ours = both
    for chat in CHATS:
        for tools in (None, [TOOL]):
            for ask in (True, False):
                options = {"tools": tools, "add_generation_prompt": ask, "date": "26 Jul 2024"}
                assert rendered(ours, chat, options) == rendered(theirs, chat, options)


def test_encoding_loads_neither_transformers_nor_torch(tmp_path):
    """Nor does rendering a chat load torch."""
    (tmp_path / "values.json").write_text(json.dumps(plain_values(load_tokenizer("bytes", None, TOOLS))))
    code = (
        "import json, sys\n"
        "from dpo.text.plain import from_values\n"
        "tokenizer = from_values(json.load(open(sys.argv[1])))\n"
        "tokenizer.decode(tokenizer('abc')['input_ids'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "tokenizer.apply_chat_template([{'role': 'user', 'content': 'x'}], tokenize=False)\n"
        "assert 'transformers' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "values.json")], check=True)
