"""Parquet and Arrow files -> rows, a bounded number of bytes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpo.text.calls import parsed
from pipeline.data.chunks import LONGEST, Chunk
from pipeline.data.files import is_uri, open_raw
from pipeline.data.row import Row
from pipeline.data.row_bytes import as_bytes, row_bytes
from pipeline.errors import first_line

BATCH_ROWS, BATCH_BYTES = 256, 16 * 2**20  # that become Python values at once, whichever comes first
LARGE_GROUP, ROWS_OF_LARGE = 512 * 2**20, 16  # bytes of a row group, and rows that are read of a larger one at once
MOST_VALUES = 64 * 2**20  # of a column in a row group that has fewer rows than a 64th of that
BUFFER = 1 << 20  # bytes of a column that are read from the file at once

Value = tuple[Any, str | None, str | None]  # the value, or None with a fault and its kind


def column_rows(path: str, chunk: Chunk) -> Iterator[Row]:
    """Yield the rows of a chunk. An unreadable value makes its row faulty; damage to the file ends it."""
    name = "a Parquet" if path.endswith(".parquet") else "an Arrow"
    index = chunk.row
    try:
        for batch, plain in _parquet_batches(path, chunk) if path.endswith(".parquet") else _arrow_batches(path):
            for value, fault, kind in map(_json_reader(plain), _values(batch, plain)):
                yield Row(index, {"row": index + 1}, value, fault, kind, _excerpt(value))
                index += 1
    except (pa.ArrowException, OSError, *_UNREADABLE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the content is not at fault: the file cannot be reached
        reason = first_line(error)
        fault = f"the file is damaged from here on: {reason}" if index else f"not {name} file: {reason}"
        yield Row(index, {"row": index + 1}, None, fault, "damaged file", "")


def _json_reader(schema: pa.Schema) -> Callable[[Value], Value]:
    """Return a function that reads the JSON texts in a row, which the type Json of the library `datasets` leaves."""
    readers = {field.name: reader for field in schema if (reader := _reader(field.type)) is not None}

    def read(row: Value) -> Value:
        value, fault, kind = row
        if value is None or not readers:
            return row
        return {n: readers[n](v) if n in readers else v for n, v in value.items()}, fault, kind

    return read


def _reader(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return a function that reads the JSON texts in a value of this type; None if it has none."""
    if isinstance(kind, pa.BaseExtensionType):
        return parsed if kind.extension_name == "arrow.json" else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _reader(kind.value_type)
        return None if inner is None else lambda value: value and [inner(each) for each in value]
    if not pa.types.is_struct(kind):
        return None
    fields = {field.name: reader for field in kind.fields if (reader := _reader(field.type)) is not None}
    if not fields:
        return None
    return lambda value: value and {n: fields[n](v) if n in fields else v for n, v in value.items()}


def _excerpt(value: Any) -> str:
    """The beginning of a row as text; long texts are not written out for it."""
    if not isinstance(value, dict):
        return ""
    return str({name: cell[:120] if isinstance(cell, str) else cell for name, cell in value.items()})[:120]


def _values(batch: pa.RecordBatch, plain: pa.Schema) -> Iterator[Value]:
    """Yield the value of each row of a batch, or what is wrong with it. A row above the limit is never converted."""
    weights = row_bytes(batch)
    at = 0
    while at < len(weights):
        if weights[at] > LONGEST:
            yield None, f"a row of {weights[at]:,} bytes; the limit is {LONGEST:,}", "huge row"
            at += 1
            continue
        fits = np.cumsum(weights[at : at + BATCH_ROWS]) <= BATCH_BYTES
        rows = max(1, int(fits.sum()))
        yield from _converted(batch.slice(at, rows), plain, whole=rows == len(weights))
        at += rows


def _converted(batch: pa.RecordBatch, plain: pa.Schema, whole: bool) -> Iterator[Value]:
    """Yield the rows of a batch as Python values. Arrow checks values only when they are converted.

    Args:
        plain: the schema without the dictionaries that a Parquet file is read with.
        whole: nothing lies before or behind these rows, which a cast would decode as well.
    """
    try:
        if batch.schema != plain:
            batch = (batch if whole else batch.take(pa.array(range(batch.num_rows)))).cast(plain)
        yield from ((value, None, None) for value in batch.to_pylist())
        return
    except _UNREADABLE:
        pass
    for at in range(batch.num_rows):
        try:
            yield batch.slice(at, 1).to_pylist()[0], None, None
        except UnicodeDecodeError as error:
            yield None, f"not UTF-8: {error.reason}", "not UTF-8"
        except _UNREADABLE as error:  # for example a date that Python cannot represent
            yield None, f"a value that cannot be read: {error}", "broken row"


_UNREADABLE = (ValueError, OverflowError)


def _parquet_batches(path: str, chunk: Chunk) -> Iterator[tuple[pa.RecordBatch, pa.Schema]]:
    """Yield batches of rows with their texts in dictionaries, as they may be in the file, and the schema without them.

    A text that a small file repeats in a million rows would take a million times its bytes otherwise.
    """
    with open_raw(path) as raw, pq.ParquetFile(raw) as file:
        plain, meta = file.schema_arrow, file.metadata
        columns = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    with open_raw(path) as raw, pq.ParquetFile(raw, read_dictionary=texts, buffer_size=BUFFER) as file:
        for number in range(chunk.first, meta.num_row_groups if chunk.end is None else chunk.end):
            group = meta.row_group(number)
            missing = group.num_rows
            for batch in file.iter_batches(batch_size=_rows_at_once(group), row_groups=[number]):
                missing -= batch.num_rows
                yield batch, plain
            if missing or group.num_rows < 0:  # with damaged counts, Arrow may silently return fewer rows
                raise pa.ArrowInvalid("its number of rows differs from the number in its metadata")


def _rows_at_once(group: Any) -> int:
    """How many rows of a row group are read at once.

    Raises:
        ArrowInvalid: its rows are above the limit on average, so that not even one may have room.
    """
    rows, weight = max(1, group.num_rows), group.total_byte_size
    values = max((group.column(number).num_values for number in range(group.num_columns)), default=0)
    if weight / rows > LONGEST:
        raise pa.ArrowInvalid(f"a row group of {weight:,} bytes in {rows:,} rows; the limit of a row is {LONGEST:,}")
    if values > MOST_VALUES and values > 64 * rows:
        raise pa.ArrowInvalid(f"a row group of {values:,} values in {rows:,} rows")
    most = BATCH_ROWS if weight <= LARGE_GROUP else ROWS_OF_LARGE
    return max(1, min(most, BATCH_BYTES * rows // max(1, weight)))


def _arrow_batches(path: str) -> Iterator[tuple[pa.RecordBatch, pa.Schema]]:
    """Yield the batches of an Arrow file, or of an Arrow stream, which is the format of the library `datasets`.

    A file is not mapped into memory: an offset beyond its end would kill the process.
    """
    with pa.PythonFile(open_raw(path)) if is_uri(path) else pa.OSFile(path) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from ((batch, batch.schema) for batch in map(_checked, pa.ipc.open_stream(source)))
            return
        for number in range(file.num_record_batches):
            batch = _checked(file.get_batch(number))
            yield batch, batch.schema


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose offsets lie within its buffers. Its texts are checked when they are converted.

    Raises:
        ArrowInvalid: one of them does not.
    """
    batch.validate()
    for column in batch.columns:
        as_bytes(column).validate(full=True)
    return batch
