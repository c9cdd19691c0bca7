"""What is measured: pairs as token ids, and a random Llama of a given shape."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.lm.sequences import TokenSequence
from dpo.text.pairs import PreferencePair, TokenizedPair, read_pair
from dpo.text.strings import AS_IS, MESSAGES, mended
from dpo.text.tokenize import Rules, tokenize_pair
from dpo.text.tokenizers import load_tokenizer
from pipeline.data.rows import read_rows


@dataclass(frozen=True)
class Pair:
    """Token ids of one pair; every token of a completion is scored."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def logical_tokens(self) -> int:
        """2P + C + R: what is computed without padding and without sharing."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    def sequences(self) -> tuple[TokenSequence, TokenSequence]:
        chosen, rejected = (TokenSequence(self.prompt, c, [True] * len(c)) for c in (self.chosen, self.rejected))
        return chosen, rejected


def benchmark_tokenizer(folder: Path) -> Any:
    return load_tokenizer(str(folder), eos_token="<|end|>")


def read_pairs(path: Path, tokenizer: Any, max_length: int, seed: int) -> tuple[list[Pair], int]:
    """The usable pairs of a file in a random order, and the size of the vocabulary.

    Strings are read as messages where the tokenizer has a chat template.
    """
    pairs = []
    for row in read_rows(str(path)):
        read, _ = mended(read_pair(row.value), AS_IS if tokenizer.chat_template is None else MESSAGES)
        if not isinstance(read, PreferencePair):
            continue
        ids = tokenize_pair(tokenizer, read, Rules(max_length))
        if isinstance(ids, TokenizedPair) and ids.chosen_ids and ids.rejected_ids:
            pairs.append(Pair(ids.prompt_ids, ids.chosen_ids, ids.rejected_ids))
    random.Random(seed).shuffle(pairs)
    return pairs, len(tokenizer)


def hh_like(count: int, vocabulary: int, seed: int) -> list[Pair]:
    """Short dialogues of random tokens with the lengths of HH-RLHF's harmless half.

    Prompts of 124 and completions of 47 tokens on average in any number of pairs, with long tails (log-normal): at 8
    pairs a micro-batch 60 % of a padded batch is padding, as there.
    """
    draw = random.Random(seed)

    def lengths(mean: float, spread: float) -> list[int]:
        drawn = [draw.lognormvariate(0, spread) for _ in range(count)]
        scale = mean * count / sum(drawn)
        return [max(2, min(1024, round(length * scale))) for length in drawn]

    def ids(length: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(length)]

    sizes = zip(lengths(124, 0.8), lengths(47, 0.9), lengths(47, 0.9), strict=True)
    return [Pair(ids(p), ids(c), ids(r)) for p, c, r in sizes]


def grouped(pairs: list[Pair]) -> list[Pair]:
    """The same pairs, those of one prompt behind one another."""
    first: dict[tuple[int, ...], int] = {}
    for number, pair in enumerate(pairs):
        first.setdefault(tuple(pair.prompt), number)
    return sorted(pairs, key=lambda pair: first[tuple(pair.prompt)])


def llama(vocabulary: int, hidden: int, layers: int, heads: int, intermediate: int, positions: int) -> dict[str, Any]:
    """A config; 512, 8, 8 and 1376 with 2,001 tokens give 27 million parameters."""
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": positions,
    }
