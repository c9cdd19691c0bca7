"""Held-out prompts that nearly equal a training prompt, found by shingles: sequences of WINDOW tokens."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from pipeline.store.tokens import lists

WINDOW = 6  # tokens per shingle
NEAR = 0.8  # least share of a held-out prompt's shingles that one training prompt must contain
COMMON = 20  # a shingle in more held-out prompts than this is ignored (the template's own words)
MOST = 20_000  # most held-out prompts to compare; of more, every n-th one


class Near(NamedTuple):
    """Row ids of a held-out pair and of a training pair whose prompts are nearly the same."""

    held_out: int
    trained: int
    share: float


def near_prompts(eval_parts: list[Path], train_parts: list[Path]) -> list[Near]:
    """Find, for each held-out prompt, the training prompt that nearly equals it, if any. Equal prompts are left out.

    Shingles are compared by a 64-bit hash. Those of the held-out prompts are in memory; the training set is read once.
    """
    ids, prompts = _prompts(eval_parts)
    step = max(1, -(-len(prompts) // MOST))
    ids, prompts = ids[::step], prompts[::step]
    rows, hashes = _shingles(prompts)
    hashes, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    telling = counts[where] <= COMMON
    rows, where = rows[telling], where[telling]
    total = np.bincount(rows, minlength=len(prompts))
    order = np.argsort(where, kind="stable")
    rows, where = rows[order], where[order]
    best: dict[int, Near] = {}
    for part in train_parts:
        for found in _matches([part], hashes, rows, where, total):
            at, other, other_id, shared = found
            same = len(other) == len(prompts[at]) and bool((other == prompts[at]).all())
            share = shared / total[at]
            if not same and share >= NEAR and (at not in best or share > best[at].share):
                best[at] = Near(int(ids[at]), other_id, float(share))
    return [best[at] for at in sorted(best)]


def _prompts(parts: list[Path]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the distinct prompts, each with the first row that has it."""
    seen: dict[bytes, tuple[int, np.ndarray]] = {}
    for part in parts:
        table = pq.read_table(part, columns=["row_id", "prompt_ids"])
        for identity, prompt in zip(table["row_id"].to_pylist(), lists(table["prompt_ids"]), strict=True):
            seen.setdefault(prompt.tobytes(), (identity, prompt))
    return np.array([identity for identity, _ in seen.values()], np.int64), [prompt for _, prompt in seen.values()]


def _shingles(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (prompt, hash) for every shingle; a shingle that a prompt repeats occurs once."""
    if not prompts:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    sizes = np.array([max(0, len(prompt) - WINDOW + 1) for prompt in prompts])
    flat = np.concatenate(prompts).astype(np.uint64)
    hashes = np.zeros(max(0, len(flat) - WINDOW + 1), np.uint64)
    for offset in range(WINDOW):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + flat[offset : offset + len(hashes)] + np.uint64(offset + 1)
        hashes ^= hashes >> np.uint64(29)
    begins = np.cumsum([0, *map(len, prompts)])[:-1]
    at = np.concatenate([np.arange(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)])
    both = np.empty(len(at), np.dtype([("row", np.int64), ("hash", np.uint64)]))
    both["row"], both["hash"] = np.repeat(np.arange(len(prompts)), sizes), hashes[at.astype(np.int64)]
    unique = np.unique(both)
    return unique["row"], unique["hash"]


def _matches(
    parts: list[Path], hashes: np.ndarray, rows: np.ndarray, where: np.ndarray, total: np.ndarray
) -> list[tuple[int, np.ndarray, int, int]]:
    """Return (held-out prompt, training prompt, its row id, common shingles) for candidates with enough in common."""
    ids, prompts = _prompts(parts)
    mine, found = _shingles(prompts)
    at = np.searchsorted(hashes, found)
    at[at == len(hashes)] = 0
    known = hashes[at] == found if len(hashes) else np.zeros(len(found), bool)
    mine, at = mine[known], at[known]
    first, last = np.searchsorted(where, at, "left"), np.searchsorted(where, at, "right")
    size = last - first
    ours = np.repeat(mine, size)
    theirs = rows[np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + np.repeat(first, size)]
    pairs, counts = np.unique(np.stack([theirs, ours]), axis=1, return_counts=True)
    enough = counts >= np.maximum(3, NEAR * total[pairs[0]])
    return [
        (int(t), prompts[o], int(ids[o]), int(n)) for t, o, n in zip(*pairs[:, enough], counts[enough], strict=True)
    ]
