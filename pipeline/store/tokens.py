"""Schemas of the Parquet files between the stages, and row ids."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpo.lm.sequences import TokenSequence
from dpo.text.pairs import TokenizedPair
from pipeline.store.cache import KEY_BYTES, sequence_key

IDS = pa.list_(pa.int32())
MASK = pa.list_(pa.bool_())
LOGPS = pa.list_(pa.float32())

# The columns that training needs.
PAIRS = pa.schema(
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
# Further columns for reports: apart and cut as in TokenizedPair; the place of the row in its file (line or row from 1;
# byte, or -1 if there is none); and whether the text spells out a control token.
NOTES = [
    ("apart", pa.bool_()),
    ("cut", pa.int32()),
    ("line", pa.int64()),
    ("byte", pa.int64()),
    ("control", pa.bool_()),
]
TOKENS = pa.schema([*PAIRS, *NOTES])
ORDERED = PAIRS.append(pa.field("chosen_logps", LOGPS)).append(pa.field("rejected_logps", LOGPS))

SPLITS = ("train", "eval")
REPEAT_BITS, FILE_BITS, ROW_BITS, COPY_BITS = 4, 16, 32, 11
MOST_REPEATS, MOST_FILES = 1 << REPEAT_BITS, 1 << FILE_BITS


def row_id(file: int, row: int, copy: int = 0) -> int:
    """Encode the origin of a pair as one number that sorts in file order. `copy` counts the pairs of one row.

    The upper bits are left for repeats in an epoch (see `repeated`).
    """
    for value, bits in ((file, FILE_BITS), (row, ROW_BITS), (copy, COPY_BITS)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"file {file}, row {row}, copy {copy} do not fit a row id")
    return (file << (ROW_BITS + COPY_BITS)) | (row << COPY_BITS) | copy


def place_of(identity: int) -> tuple[int, int, int]:
    """Return file, row and copy of a row id."""
    low = identity & ((1 << (FILE_BITS + ROW_BITS + COPY_BITS)) - 1)
    return low >> (ROW_BITS + COPY_BITS), (low >> COPY_BITS) & ((1 << ROW_BITS) - 1), low & ((1 << COPY_BITS) - 1)


def token_row(
    identity: int, pair: TokenizedPair, line: int = 0, byte: int = -1, control: bool = False
) -> dict[str, object]:
    """Return a pair as a row of TOKENS."""
    prompt, chosen, rejected = (np.asarray(ids, np.int32) for ids in pair[:3])
    chosen_mask, rejected_mask = np.asarray(pair.chosen_mask, bool), np.asarray(pair.rejected_mask, bool)
    keys = sequence_key(prompt, chosen, chosen_mask), sequence_key(prompt, rejected, rejected_mask)
    values = (identity, hashlib.blake2b(keys[0] + keys[1], digest_size=16).digest(), prompt, chosen, rejected)
    notes = (pair.apart, pair.cut, line, byte, control)
    return dict(zip(TOKENS.names, (*values, chosen_mask, rejected_mask, *keys, *notes), strict=True))


def token_table(rows: list[dict[str, object]]) -> pa.Table:
    """Make a table from rows of `token_row`, without a Python object for every token."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in TOKENS.names}
    arrays = [
        _list_array(columns[field.name], field.type)
        if pa.types.is_list(field.type)
        else pa.array(columns[field.name], field.type)
        for field in TOKENS
    ]
    return pa.Table.from_arrays(arrays, schema=TOKENS)


def _list_array(values: list[np.ndarray], kind: pa.ListType) -> pa.ListArray:
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *values])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat, kind.value_type))


def repeated(table: pa.Table, weights: tuple[float, ...]) -> pa.Table:
    """Repeat or drop rows by the weight of their source. With weight 2.5 each row occurs twice, and half of them again.

    Args:
        weights: one per file, by file number; empty if every row occurs once.

    Returns:
        The same columns; the upper bits of the row id have the number of the repeat.
    """
    if not weights:
        return table
    ids = table["row_id"].to_numpy()
    weight = np.asarray(weights)[(ids >> (ROW_BITS + COPY_BITS)).astype(np.int64)]
    chance = mix(ids, 0, -1).astype(np.float64) / 2.0**64  # the same in every epoch
    counts = np.floor(weight).astype(np.int64) + (chance < weight % 1.0)
    rows = np.repeat(np.arange(len(ids)), counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shift = FILE_BITS + ROW_BITS + COPY_BITS
    new = pa.array(ids[rows] | (number << shift), pa.int64())
    return table.take(rows).set_column(table.schema.get_field_index("row_id"), "row_id", new)


def sides(table: pa.Table, name: str) -> list[TokenSequence]:
    """Return one side ("chosen" or "rejected") of every row as sequences."""
    columns = (table["prompt_ids"], table[f"{name}_ids"], table[f"{name}_mask"])
    return [TokenSequence(*row) for row in zip(*map(lists, columns), strict=True)]


def lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Return one numpy array per row of a list column, without a Python object for every element."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunks at all
        return []
    values = array.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths(column))
    return np.split(values, ends[:-1]) if len(ends) else []


def lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Return the number of elements in each row of a list column."""
    return pc.call_function("list_value_length", [column]).to_numpy().astype(np.int64)


def mix(row_ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return a pseudo-random uint64 for every row. Sorting by it gives the order of the epoch.

    The finaliser of splitmix64 is a bijection, so all values differ and there are no ties.
    """
    salt = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    z = row_ids.astype(np.uint64) ^ np.frombuffer(salt, "<u8")[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
