"""Texts -> token ids, in batches. A beginning that several texts share is encoded once, where that is exact."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import models

# Pre-tokenizers that split a text into words by looking only forward: those of GPT-2, Llama 3, Qwen 2 and cl100k. All
# of them split before a blank between two letters, in any context.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTED, _END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
QWEN2 = rf"{_CONTRACTED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
PATTERNS = (GPT2, LLAMA3, QWEN2)
BETWEEN_WORDS = re.compile(r"[A-Za-z](?= [A-Za-z])")
ANCHORS = ("\n", "0", ".", "x")
LOOK_BACK = 400  # characters at the end of a prompt in which a place to cut is searched


def encode_all(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    """Return the token ids of each text. `special` adds the tokenizer's begin tokens, but never its end tokens.

    But for the end tokens the ids are those of `tokenizer(text)`; masks and offsets are not computed.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, models.BPE) and backend.model.dropout:
        backend.model.dropout = None  # with it, a text has other ids each time
    head = _begins_with(backend, tokenizer.bos_token_id) if special else []
    return [head + found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


KNOWN_WORDS = ("a", "0", ".", "the")  # at least one of them has a token in nearly every vocabulary


def _begins_with(backend: Any, begin: int | None) -> list[int]:
    """Return the ids that the tokenizer's post-processor puts before a text; those behind it are not wanted."""
    for word in KNOWN_WORDS:
        bare, whole = backend.encode(word, add_special_tokens=False).ids, backend.encode(word).ids
        for at in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[at : at + len(bare)] == bare:
                return whole[:at]
    return [token for token in backend.encode("").ids[:1] if token == begin]


def cuts_between_words(tokenizer: Any) -> bool:
    """Tell whether a text cut before a blank between two letters has the same ids when its pieces are encoded apart."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["normalizer"] is not None or state["model"]["type"] != "BPE" or state["model"].get("dropout"):
        return False
    for token in state["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or BETWEEN_WORDS.search(f"a{token['content']}a"):
            return False
    step = state["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    *splits, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return False
    if not splits:
        return bool(last["use_regex"])
    (split,) = splits if len(splits) == 1 else ({},)
    known = split.get("pattern", {}).get("Regex") in PATTERNS
    return known and split.get("behavior") == "Isolated" and not split["invert"] and not last["use_regex"]


class Encoder:
    """Token ids of texts, each encoded once. Texts announced with `want` are encoded in one batch."""

    def __init__(self, tokenizer: Any, cut: bool = True):
        """Start without any encoded text.

        Args:
            cut: check whether prompts may be cut. This reads the whole tokenizer, which pays off for many pairs.
        """
        self.tokenizer = tokenizer
        self.cuts = cut and cuts_between_words(tokenizer)
        self.known: dict[tuple[str, bool], list[int]] = {}
        self.wanted: dict[tuple[str, bool], None] = {}

    def head(self, prompt: str) -> int:
        """Return the length of the beginning of a prompt that is encoded separately, once for all texts with it."""
        if not self.cuts:
            return 0
        begin = max(0, len(prompt) - LOOK_BACK)
        found = None
        for found in BETWEEN_WORDS.finditer(prompt, begin):  # noqa: B007 - the last one
            pass
        return found.end() if found is not None else 0

    def want(self, text: str, head: int, special: bool) -> None:
        for piece in self._pieces(text, head, special):
            if piece not in self.known:
                self.wanted[piece] = None

    def encode_wanted(self) -> None:
        """Encode all announced texts in one batch."""
        for special in (False, True):
            texts = [text for text, flag in self.wanted if flag == special]
            ids = encode_all(self.tokenizer, texts, special) if texts else []
            self.known |= dict(zip(((text, special) for text in texts), ids, strict=True))
        self.wanted = {}

    def __call__(self, text: str, head: int, special: bool) -> list[int]:
        """Return the ids of a text. Its first `head` characters, as returned by `head()`, are encoded separately."""
        self.want(text, head, special)
        if self.wanted:
            self.encode_wanted()
        found = [self.known[piece] for piece in self._pieces(text, head, special)]
        return found[0] if len(found) == 1 else found[0] + found[1]

    def inside(self, text: str) -> list[int]:
        """Return the ids of a text as it stands in the middle of another one, where no blank is put before it.

        A tokenizer that puts a blank before every text encodes it behind an anchor, whose ids are then cut off. An
        anchor will do if the text does not change its ids.
        """
        if self.puts_blanks:
            for anchor in ANCHORS:
                found = self.behind(anchor, text)
                if found is not None:
                    return found
        return self(text, 0, False)

    def behind(self, anchor: str, text: str) -> list[int] | None:
        """Return the ids of a text behind an anchor; None if the anchor's ids change with the text."""
        head, whole = self(anchor, 0, False), self(anchor + text, 0, False)
        return whole[len(head) :] if whole[: len(head)] == head else None

    @cached_property
    def puts_blanks(self) -> bool:
        """Whether a text by itself has other ids than behind every anchor, as one that begins with a blank."""
        return all(self.behind(anchor, "a") != self("a", 0, False) for anchor in ANCHORS)

    def decoded(self, ids: Sequence[list[int]]) -> list[str]:
        """Return the texts of token ids, special tokens with them."""
        backend = self.tokenizer.backend_tokenizer
        if backend.decoder is None:  # then tokens would be joined by blanks
            return ["".join(map(backend.id_to_token, each)) for each in ids]
        return backend.decode_batch(list(ids), skip_special_tokens=False)

    def _pieces(self, text: str, head: int, special: bool) -> list[tuple[str, bool]]:
        return [(text, special)] if not head else [(text[:head], special), (text[head:], False)]
