"""Many small parts of a cache -> few large ones with each key once. Damaged parts are removed.

Each step writes new parts before it removes old ones. An interruption at any point therefore loses nothing: some rows
are stored twice, and the next compaction removes the repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.store.cache import KEY_BYTES, PROMPT_BYTES, Cache, DamagedPart, GonePart, keys_of

PART_BYTES = 64 * 2**20
MEMORY_BYTES = 8 * PART_BYTES  # size of the parts that are merged at once


class Compacted(NamedTuple):
    """The result of a compaction."""

    parts_before: int
    parts: int
    rows_before: int
    rows: int
    damaged: list[str]  # damaged parts, which were removed


def compact(cache: Cache, part_bytes: int = PART_BYTES, memory_bytes: int = MEMORY_BYTES) -> Compacted:
    """Merge all parts, in two passes if they do not fit into memory together.

    The first pass splits each group of parts into ranges of keys. The second pass merges the parts of each range.
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
    """Group the parts up to `limit` bytes. A larger part is a group of its own."""
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
    """Merge parts into one new part per range of keys, None for an empty range; then remove the old parts."""
    tables = []
    for name in names:
        try:
            tables += list(cache.read(name))
        except DamagedPart:
            damaged.append(name)
        except GonePart:
            pass  # a part is removed only after its rows were written to another one
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
