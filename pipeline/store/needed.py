"""Token parts + the cache -> which sequences are still to be scored, and those sequences."""

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
    """The sequences of some token parts, in the light of a cache."""

    columns: list[tuple[np.ndarray, np.ndarray]]  # keys of chosen and of rejected completions in each part
    cached: np.ndarray  # keys, sorted, each once
    missing: np.ndarray


def look_up(cache: Cache, parts: list[Path], note: Callable[[str], None]) -> Needed:
    """Find out which sequences of token parts have log-probs.

    Args:
        note: is told which parts of the cache are damaged.
    """
    columns = key_columns(parts)
    wanted = all_keys(columns)
    found = cache.find(wanted)
    for name in found.damaged:
        note(f"damaged and set aside, to be scored again: {cache.where}/{DAMAGED}/{name}")
    return Needed(columns, wanted[found.have], wanted[~found.have])


def key_columns(parts: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The keys of chosen and of rejected completions in each part."""
    tables = [pq.read_table(path, columns=["chosen_key", "rejected_key"]) for path in parts]
    return [(keys_of(table["chosen_key"]), keys_of(table["rejected_key"])) for table in tables]


def all_keys(columns: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Every key of some parts, sorted, each once."""
    return np.unique(np.concatenate([np.empty(0, KEY), *(keys for pair in columns for keys in pair)]))


def wanted_rows(
    parts: list[Path], columns: list[tuple[np.ndarray, np.ndarray]], wanted: np.ndarray
) -> list[dict[str, Any]]:
    """For each part, which rows and sides (2 * row + side) have these keys: a sequence in several pairs only once."""
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
    """The wanted sequences of a token part by key: those of one prompt together, and near ones in one cache part."""
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
