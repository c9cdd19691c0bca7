"""Token parts of a split -> arrays of lengths and counts, with one entry per pair. Parts are read one at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.tokens import lengths, lists, mix

SIDES = ("prompt", "chosen", "rejected")


class Tokens(NamedTuple):
    """The token ids that the checks look for; None if the tokenizer has no such token."""

    bos: int | None
    eos: int
    unknown: int | None


class Numbers(NamedTuple):
    """Arrays with one entry per pair, in file order. Lengths are in tokens."""

    row_id: np.ndarray
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    prompt_hash: np.ndarray  # uint64; equal for equal prompts
    apart: np.ndarray  # bool: prompt and completion were encoded apart
    cut: np.ndarray  # tokens of the longer side that were cut away
    control: np.ndarray  # bool: the text spells out a control token
    unknown: np.ndarray  # unknown tokens of all three sides
    begins: np.ndarray  # begin tokens at the start of the prompt
    inner_begins: np.ndarray  # begin tokens in the completions
    double_ends: np.ndarray  # end tokens of the completions beyond the first of each

    @property
    def pairs(self) -> int:
        return len(self.row_id)

    @property
    def longest(self) -> np.ndarray:
        """Length of the prompt plus the longer completion, after truncation."""
        return self.prompt + np.maximum(self.chosen, self.rejected)


def read_numbers(parts: list[Path], tokens: Tokens) -> Numbers:
    """Read token parts. Needs about 70 bytes of memory per pair."""
    found = [_part(pq.read_table(path), tokens) for path in parts]
    if not found:
        return Numbers(*(np.empty(0, np.int64) for _ in Numbers._fields))
    return Numbers(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _part(table: pa.Table, tokens: Tokens) -> Numbers:
    ids = {side: lists(table[f"{side}_ids"]) for side in SIDES}
    hashes = [hashlib.blake2b(prompt.tobytes(), digest_size=8).digest() for prompt in ids["prompt"]]
    completions = [np.concatenate(both) for both in zip(ids["chosen"], ids["rejected"], strict=True)]
    whole = [np.concatenate(both) for both in zip(ids["prompt"], completions, strict=True)]
    ends = [_double_ends(ids[side], tokens.eos) for side in ("chosen", "rejected")]
    columns = [
        table["row_id"].to_numpy(),
        *(lengths(table[f"{side}_ids"]) for side in SIDES),
        np.frombuffer(b"".join(hashes), np.uint64),
        *(table[name].to_numpy() for name in ("apart", "cut", "control")),
        _occurrences(whole, tokens.unknown),
        np.array([_leading(prompt, tokens.bos) for prompt in ids["prompt"]], np.int64),
        _occurrences(completions, tokens.bos),
        ends[0] + ends[1],
    ]
    return Numbers(*columns)


def _occurrences(rows: list[np.ndarray], token: int | None) -> np.ndarray:
    return np.array([np.count_nonzero(row == token) if token is not None else 0 for row in rows], np.int64)


def _leading(row: np.ndarray, token: int | None) -> int:
    other = np.flatnonzero(row != token)
    return 0 if token is None else int(other[0]) if len(other) else len(row)


def _double_ends(rows: list[np.ndarray], eos: int) -> np.ndarray:
    """Count the end tokens after the first one. With them, a model learns to end twice or to continue after its end."""
    return np.array([max(0, np.count_nonzero(row == eos) - 1) for row in rows], np.int64)


class Work(NamedTuple):
    """Tokens of one epoch in different layouts. P, C, R: tokens of prompts, chosen and rejected completions."""

    logical: int  # 2P + C + R: every sequence in full
    padded: int  # micro-batches of 8 pairs in random order, padded to the longest sequence
    shared: int  # P + C + R: a prompt once per pair
    grouped: int  # a prompt once for all pairs that have it

    def share(self, of: int) -> float:
        """Return the share of the logical tokens that a layout with `of` tokens saves."""
        return 1 - of / max(1, self.logical)


def work_of(numbers: Numbers) -> Work:
    prompt, chosen, rejected = (getattr(numbers, side).astype(np.int64) for side in SIDES)
    order = np.argsort(mix(numbers.row_id, 0, 0))
    batches = np.split(numbers.longest[order], range(8, numbers.pairs, 8))
    padded = sum(2 * len(batch) * int(batch.max()) for batch in batches if len(batch))
    _, first = np.unique(numbers.prompt_hash, return_index=True)
    completions = int(chosen.sum() + rejected.sum())
    total = int(prompt.sum())
    return Work(2 * total + completions, padded, total + completions, int(prompt[first].sum()) + completions)


def text_of(tokenizer: Any, ids: list[int], most: int = 60, tail: bool = False) -> str:
    """Decode the beginning of a sequence (with `tail`, its end) to at most `most` characters."""
    text = tokenizer.decode(ids[-most:] if tail else ids[:most], skip_special_tokens=False)
    if len(text) <= most:
        return text
    return "…" + text[-most:] if tail else text[:most] + "…"
