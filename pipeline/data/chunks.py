"""Chunks of a large file, which tasks read in parallel. Each chunk knows how many rows come before it."""

from __future__ import annotations

import codecs
import re
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.files import DAMAGED, is_uri, open_raw

MARK = codecs.BOM_UTF8
LONGEST = 64 * 2**20  # bytes of a line; a longer line is rejected without being held in memory
CHUNK_BYTES = 8 * 2**20


class Chunk(NamedTuple):
    """A range of a file: of bytes in a text file, of row groups in Parquet. `line` and `row` count those before it."""

    first: int = 0
    end: int | None = None
    line: int = 0
    row: int = 0


def chunks(path: str, size: int | None = None) -> list[Chunk]:
    """Cut a file into chunks of about `size` bytes that tasks can read in parallel.

    A compressed file, a JSON array, a CSV or Arrow file, and a text file in an object store are one chunk. A plain
    text file on disk is read once here to count its lines.
    """
    size = size or CHUNK_BYTES
    if path.endswith(".parquet"):
        return _row_groups(path, size)
    if is_uri(path) or not re.search(r"\.(jsonl|ndjson|json)$", path):
        return [Chunk()]
    with open_raw(path) as file:
        if file.seek(0, 2) <= size or (file.seek(0) == 0 and first_byte(file) == b"["):
            return [Chunk()]
        file.seek(0)
        return _line_chunks(file, size)


def _line_chunks(file: BinaryIO, size: int) -> list[Chunk]:
    found, first, begun = [], Chunk(), 0
    byte = line = row = 0
    while raw := file.readline(LONGEST + 1):
        if byte - begun >= size:
            found.append(first._replace(end=byte))
            first, begun = Chunk(byte, None, line, row), byte
        byte, line = byte + len(raw), line + 1
        long = len(raw) > LONGEST and not raw.endswith(b"\n")
        row += long or bool(raw.removeprefix(MARK if line == 1 else b"").strip())  # as `rows._lines` counts them
        while long and (more := file.readline(LONGEST)):
            byte, long = byte + len(more), not more.endswith(b"\n")
    return [*found, first]


def _row_groups(path: str, size: int) -> list[Chunk]:
    try:
        with open_raw(path) as raw, pq.ParquetFile(raw) as file:
            meta = file.metadata
            groups = [
                (meta.row_group(i).total_byte_size, meta.row_group(i).num_rows) for i in range(meta.num_row_groups)
            ]
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return [Chunk()]  # the reader meets the same error and reports it
    if any(rows < 0 for _, rows in groups):
        return [Chunk()]  # a damaged file, which the reader reports
    found, first, bytes_, row = [], Chunk(), 0, 0
    for number, (weight, rows) in enumerate(groups):
        if bytes_ >= size:
            found.append(first._replace(end=number))
            first, bytes_ = Chunk(number, None, 0, row), 0
        bytes_, row = bytes_ + weight, row + rows
    return [*found, first]


def first_byte(file: Any) -> bytes:
    """Return the first byte that is neither blank nor part of a byte order mark. The position does not change."""
    try:
        return file.peek(4096).removeprefix(MARK).lstrip()[:1]
    except DAMAGED:
        return b""  # the reader meets the same damage and reports where it is
