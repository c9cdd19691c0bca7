"""Many small parts of a cache -> few large ones, each key once; what no longer verifies goes.

Every step writes before it removes, and what it writes is a part like any other: cut off anywhere, the cache holds all
that it held, some of it twice, and the next compaction ends the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.store.cache import KEY_BYTES, PROMPT_BYTES, Cache, DamagedPart, GonePart, keys_of

PART_BYTES = 64 * 2**20
MEMORY_BYTES = 8 * PART_BYTES  # of parts that are merged at once


class Compacted(NamedTuple):
    """What a compaction did."""

    parts_before: int
    parts: int
    rows_before: int
    rows: int
    damaged: list[str]  # parts that were removed


def compact(cache: Cache, part_bytes: int = PART_BYTES, memory_bytes: int = MEMORY_BYTES) -> Compacted:
    """Merge all parts, in two passes where they do not fit into memory together.

    The first pass cuts each share of the parts into ranges of keys; the second merges what lies in one range.
    """
    sizes, rows_before = cache.sizes(), cache.rows()
    count = max(1, -(-sum(sizes.values()) // part_bytes))
    damaged: list[str] = []
    shares = list(_shares(sizes, memory_bytes))
    written = [_merge(cache, share, count, damaged) for share in shares]
    if len(shares) > 1:
        for same_range in zip(*written, strict=True):
            _merge(cache, [name for name in same_range if name is not None], 1, damaged)
    return Compacted(len(sizes), len(cache.parts()), rows_before, cache.rows(), damaged)


def _shares(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Parts of so many bytes together; a larger one alone."""
    share: list[str] = []
    used = 0
    for name, size in sizes.items():
        if share and used + size > limit:
            yield share
            share, used = [], 0
        share.append(name)
        used += size
    if share:
        yield share


def _merge(cache: Cache, names: list[str], count: int, damaged: list[str]) -> list[str | None]:
    """Parts -> one for each of `count` ranges of keys, None for an empty one; then remove what they replace."""
    tables = []
    for name in names:
        try:
            tables += list(cache.read(name))
        except DamagedPart:
            damaged.append(name)
        except GonePart:
            pass  # a part goes only after its rows were written to another
    written: list[str | None] = [None] * count
    if tables:
        table = pa.concat_tables(tables)
        keys, first = np.unique(keys_of(table["key"]), return_index=True)
        prefixes = keys.view((np.uint8, KEY_BYTES))[:, :PROMPT_BYTES].copy().view(">u4").reshape(-1).astype(np.uint64)
        ranges = (prefixes * np.uint64(count)) >> np.uint64(8 * PROMPT_BYTES)
        for number in np.unique(ranges).tolist():
            written[number] = cache.write_sorted(table.take(first[ranges == number]).combine_chunks())
    for name in names:
        if name not in written:
            cache.folder.remove(name)
    return written
