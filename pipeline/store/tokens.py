"""Schemas of the Parquet files between the stages, and the identity of a row."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpo.pairs import TokenizedPair, TokenSequence
from pipeline.store.cache import KEY_BYTES, sequence_key

IDS = pa.list_(pa.int32())
MASK = pa.list_(pa.bool_())
LOGPS = pa.list_(pa.float32())

TOKENS = pa.schema(
    [
        ("row_id", pa.int64()),
        ("pair_id", pa.binary(16)),
        ("prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_ids", IDS),
        ("chosen_mask", MASK),
        ("rejected_mask", MASK),
        ("chosen_key", pa.binary(KEY_BYTES)),
        ("rejected_key", pa.binary(KEY_BYTES)),
    ]
)
ORDERED = TOKENS.append(pa.field("chosen_logps", LOGPS)).append(pa.field("rejected_logps", LOGPS))

FILE_BITS, ROW_BITS, COPY_BITS = 20, 32, 11


def row_id(file: int, row: int, copy: int = 0) -> int:
    """Where a row comes from, as one number that sorts in file order."""
    for value, bits in ((file, FILE_BITS), (row, ROW_BITS), (copy, COPY_BITS)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"file {file}, row {row}, copy {copy} do not fit a row id")
    return (file << (ROW_BITS + COPY_BITS)) | (row << COPY_BITS) | copy


def token_row(identity: int, pair: TokenizedPair) -> dict[str, object]:
    """One pair as a row of TOKENS."""
    prompt, chosen, rejected = (np.asarray(ids, np.int32) for ids in pair[:3])
    chosen_mask, rejected_mask = np.asarray(pair.chosen_mask, bool), np.asarray(pair.rejected_mask, bool)
    keys = sequence_key(prompt, chosen, chosen_mask), sequence_key(prompt, rejected, rejected_mask)
    values = (identity, hashlib.blake2b(keys[0] + keys[1], digest_size=16).digest(), prompt, chosen, rejected)
    return dict(zip(TOKENS.names, (*values, chosen_mask, rejected_mask, *keys), strict=True))


def sides(table: pa.Table, name: str) -> list[TokenSequence]:
    """One side ("chosen" or "rejected") of every row, as sequences."""
    columns = (table["prompt_ids"], table[f"{name}_ids"], table[f"{name}_mask"])
    return [TokenSequence(*row) for row in zip(*map(lists, columns), strict=True)]


def lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column -> one numpy array a row, without a Python object for every element."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunks at all
        return []
    values = array.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths(column))
    return np.split(values, ends[:-1]) if len(ends) else []


def lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Elements in each row of a list column."""
    return pc.call_function("list_value_length", [column]).to_numpy().astype(np.int64)


def mix(row_ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A random but repeatable uint64 for every row; sorting by it is the order of the epoch.

    The finaliser of splitmix64 is a bijection, so no two rows share a value and nothing breaks ties.
    """
    salt = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    z = row_ids.astype(np.uint64) ^ np.frombuffer(salt, "<u8")[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
