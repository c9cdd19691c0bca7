"""Tiny tokenizers of twenty kinds, trained on a few sentences, with the special tokens of several chat templates."""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dpo.text.encode import LLAMA3, QWEN2
from dpo.text.tokenizers import byte_tokenizer

TEXT = [
    "Which river runs through Vienna? The Danube. The Rhine, I think.",
    "Answer in one short sentence. And through Basel? No river at all.",
    "user: assistant: system: Human: Assistant: Q: A: yes no maybe 1 2 3 4\n\n",
    "The river is long. The river is a town.  Two blanks, and\ttabs.\n",
] * 30
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|user|>"]
SPECIAL += ["<|assistant|>", "<|end|>"]


def wrap(backend, begin="<s>", end="</s>", pad="<pad>"):
    given = {"bos_token": begin, "eos_token": end, "pad_token": pad, "unk_token": "<unk>"}
    more = [token for token in SPECIAL if token not in given.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=more, clean_up_tokenization_spaces=False, **given
    )


def with_ends(backend, form):
    ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=ids)
    return backend


def byte_pairs(form=None, blank=False, split=None, normalizer=None):
    found = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=split is None)
    found.pre_tokenizer = level
    if split is not None:
        found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    if normalizer is not None:
        found.normalizer = normalizer
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": SPECIAL, "initial_alphabet": alphabet, "show_progress": False}
    found.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=600, **options))
    return with_ends(found, form) if form else found


def sentencepiece(scheme):
    """BPE over ▁, with bytes for what it does not know; "legacy": the normalizer puts the blank, as for Llama 2."""
    found = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if scheme == "legacy" else scheme)
    if scheme == "never":
        found.normalizer = normalizers.Replace(" ", "▁")
        found.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    found.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    if scheme == "legacy":
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        found.pre_tokenizer = None
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    found.decoder = decoders.Sequence(steps if scheme == "never" else [*steps, decoders.Strip(content=" ", left=1)])
    return with_ends(found, "<s> $A")


def unigram(form):
    found = Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    found.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", "\t"]
    options = {"special_tokens": SPECIAL, "unk_token": "<unk>", "initial_alphabet": alphabet, "show_progress": False}
    found.train_from_iterator(TEXT, trainers.UnigramTrainer(vocab_size=400, **options))
    return with_ends(found, form)


def eats_blanks():
    """Special tokens that take the blanks and line ends behind them, as Phi-3's."""
    found = sentencepiece("legacy")
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    found.add_special_tokens([AddedToken(name, rstrip=True, special=True, normalized=False) for name in names])
    return found


def with_dropout():
    found = byte_pairs()
    found.model.dropout = 0.3
    return found


def cut_and_padded():
    found = byte_pairs("<s> $A")
    found.enable_truncation(8)
    found.enable_padding(length=16, pad_id=found.token_to_id("<pad>"), pad_token="<pad>")
    return found


def word_piece():
    found = Tokenizer(models.WordPiece(unk_token="<unk>"))
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer, found.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    found.train_from_iterator(TEXT, trainer)
    return with_ends(found, "<s> $A </s>")


KINDS = {
    "bytes": byte_tokenizer,
    "byte BPE, no begin token (Qwen)": lambda: wrap(byte_pairs(), begin=None),
    "byte BPE, Llama 3's pattern, begin token added": lambda: wrap(byte_pairs("<s> $A", split=LLAMA3)),
    "byte BPE, Qwen 2's pattern, NFC": lambda: wrap(byte_pairs(split=QWEN2, normalizer=normalizers.NFC()), begin=None),
    "byte BPE, begin and end token added": lambda: wrap(byte_pairs("<s> $A </s>")),
    "byte BPE, a blank before every text (RoBERTa)": lambda: wrap(byte_pairs("<s> $A </s>", blank=True)),
    "byte BPE, end token of another name than the one it adds": lambda: wrap(byte_pairs("<s> $A </s>"), end="<|end|>"),
    "byte BPE, pad is the end token": lambda: wrap(byte_pairs(), pad="</s>"),
    "byte BPE, no pad": lambda: wrap(byte_pairs(), pad=None),
    "byte BPE, truncation and padding in the file": lambda: wrap(cut_and_padded()),
    "byte BPE, dropout in the file": lambda: wrap(with_dropout()),
    "SentencePiece, normalizer prepends (Llama 2)": lambda: wrap(sentencepiece("legacy")),
    "SentencePiece, Metaspace first (Mistral)": lambda: wrap(sentencepiece("first")),
    "SentencePiece, Metaspace always": lambda: wrap(sentencepiece("always")),
    "SentencePiece, nothing prepended (Gemma)": lambda: wrap(sentencepiece("never")),
    "SentencePiece, special tokens that eat blanks (Phi-3)": lambda: wrap(eats_blanks()),
    "Unigram, end token added (T5)": lambda: wrap(unigram("$A </s>"), begin=None),
    "Unigram, begin token added": lambda: wrap(unigram("<s> $A")),
    "WordPiece (BERT)": lambda: wrap(word_piece()),
    "WordPiece, end token of another name than the one it adds": lambda: wrap(word_piece(), end="<|end|>"),
}
CHANGES_TEXT = ("WordPiece", "Unigram")  # blanks, line ends and capitals, or what it does not know, do not come back


@cache
def kind(name):
    """The tokenizer of a kind, trained once. Its chat template is for the test to set."""
    return KINDS[name]()
