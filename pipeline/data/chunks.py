"""A large file cut into stretches that tasks read side by side, each knowing which rows come before it."""

from __future__ import annotations

import codecs
import re
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.files import DAMAGED, is_uri, open_raw

MARK = codecs.BOM_UTF8
LONGEST = 64 * 2**20  # bytes of a line; one that is longer is no row, and is not kept in memory to find that out
CHUNK_BYTES = 8 * 2**20


class Chunk(NamedTuple):
    """A stretch of a file: bytes of lines, or row groups of Parquet; `line` and `row` are how many come before it."""

    first: int = 0
    end: int | None = None
    line: int = 0
    row: int = 0


def chunks(path: str, size: int | None = None) -> list[Chunk]:
    """A file cut into stretches that tasks may read side by side; one stretch where its kind does not allow it.

    Lines of a plain file on disk are counted once for it; a file in an object store is not read twice.
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
        return [Chunk()]  # whoever reads it meets the same
    if any(rows < 0 for _, rows in groups):
        return [Chunk()]  # so it is damaged
    found, first, bytes_, row = [], Chunk(), 0, 0
    for number, (weight, rows) in enumerate(groups):
        if bytes_ >= size:
            found.append(first._replace(end=number))
            first, bytes_ = Chunk(number, None, 0, row), 0
        bytes_, row = bytes_ + weight, row + rows
    return [*found, first]


def first_byte(file: Any) -> bytes:
    """The first byte that is neither blank nor part of a byte order mark; the file is left at its beginning."""
    try:
        return file.peek(4096).removeprefix(MARK).lstrip()[:1]
    except DAMAGED:
        return b""  # the reader that follows meets the same damage and says where
