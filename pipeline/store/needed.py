"""Token parts + the cache -> the sequences that still have to be scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.cache import DAMAGED, KEY, SCHEMA, Cache, keys_of, match
from pipeline.store.tokens import IDS, MASK

SEQUENCES = pa.schema([("key", SCHEMA.field("key").type), ("prompt_ids", IDS), ("completion_ids", IDS), ("mask", MASK)])


class Needed(NamedTuple):
    """The sequences of token parts, split into cached and missing ones."""

    columns: list[tuple[np.ndarray, np.ndarray]]  # for each part, the keys of its chosen and rejected completions
    cached: np.ndarray  # keys, sorted, unique
    missing: np.ndarray  # keys, sorted, unique


def look_up(cache: Cache, parts: list[Path], note: Callable[[str], None]) -> Needed:
    """Find out which sequences of token parts are cached.

    Args:
        note: called with a message for each damaged part of the cache.
    """
    columns = key_columns(parts)
    wanted = all_keys(columns)
    found = cache.find(wanted)
    for name in found.damaged:
        note(f"damaged part of the cache, to be scored again; moved to {cache.where}/{DAMAGED}/{name}")
    return Needed(columns, wanted[found.have], wanted[~found.have])


def key_columns(parts: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each part, the keys of its chosen and of its rejected completions."""
    tables = [pq.read_table(path, columns=["chosen_key", "rejected_key"]) for path in parts]
    return [(keys_of(table["chosen_key"]), keys_of(table["rejected_key"])) for table in tables]


def all_keys(columns: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return all keys, sorted and unique."""
    return np.unique(np.concatenate([np.empty(0, KEY), *(keys for pair in columns for keys in pair)]))


def wanted_rows(
    parts: list[Path], columns: list[tuple[np.ndarray, np.ndarray]], wanted: np.ndarray
) -> list[dict[str, Any]]:
    """List, for each part, the rows and sides with the wanted keys, as 2 * row + side. Each key occurs once."""
    items, planned = [], np.zeros(len(wanted), bool)
    for path, sides in zip(parts, columns, strict=True):
        codes = []
        for side, keys in enumerate(sides):
            rows, at = match(keys, wanted)
            different, first = np.unique(at, return_index=True)
            first = first[~planned[different]]
            planned[at[first]] = True
            codes.append(rows[first] * 2 + side)
        found = np.concatenate(codes).astype(np.int32)
        if len(found):
            items.append({"path": str(path), "rows": found.tobytes()})
    return items


def read_sequences(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the wanted sequences of token parts, sorted by key, so that sequences of one prompt are neighbours."""
    for item in table.to_pylist():
        part = pq.read_table(item["path"])
        codes = np.frombuffer(item["rows"], np.int32)
        found = [part.take(codes[codes % 2 == side] // 2) for side in (0, 1)]
        columns = {
            "key": [f[f"{name}_key"] for f, name in zip(found, ("chosen", "rejected"), strict=True)],
            "prompt_ids": [f["prompt_ids"] for f in found],
            "completion_ids": [f[f"{name}_ids"] for f, name in zip(found, ("chosen", "rejected"), strict=True)],
            "mask": [f[f"{name}_mask"] for f, name in zip(found, ("chosen", "rejected"), strict=True)],
        }
        chunks = {name: pa.chunked_array([c for col in cols for c in col.chunks]) for name, cols in columns.items()}
        sequences = pa.table(chunks, schema=SEQUENCES)
        yield sequences.take(np.argsort(keys_of(sequences["key"])))
