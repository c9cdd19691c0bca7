"""Parquet and Arrow files -> rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.chunks import Chunk
from pipeline.data.files import is_uri, open_raw
from pipeline.data.row import Row
from pipeline.errors import first_line


def column_rows(path: str, chunk: Chunk) -> Iterator[Row]:
    """Yield the rows of a chunk. An unreadable value makes its row faulty; damage to the file ends it."""
    name = "a Parquet" if path.endswith(".parquet") else "an Arrow"
    index = chunk.row
    try:
        for batch in _parquet_batches(path, chunk) if path.endswith(".parquet") else _arrow_batches(path):
            for value, fault, kind in _values(batch):
                yield Row(index, {"row": index + 1}, value, fault, kind, "" if value is None else str(value)[:120])
                index += 1
    except (pa.ArrowException, OSError, *_UNREADABLE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the content is not at fault: the file cannot be reached
        reason = first_line(error)
        fault = f"the file is damaged from here on: {reason}" if index else f"not {name} file: {reason}"
        yield Row(index, {"row": index + 1}, None, fault, "damaged file", "")


def _values(batch: pa.RecordBatch) -> Iterator[tuple[Any, str | None, str | None]]:
    """Yield (value, None, None) for each row of a batch, or (None, fault, kind) for a row that cannot be converted.

    Arrow checks values only when they are converted to Python.
    """
    try:
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


def _parquet_batches(path: str, chunk: Chunk) -> Iterator[pa.RecordBatch]:
    with open_raw(path) as raw, pq.ParquetFile(raw) as file:
        meta = file.metadata
        groups = range(chunk.first, meta.num_row_groups if chunk.end is None else chunk.end)
        counts = [meta.row_group(number).num_rows for number in groups]
        missing = sum(counts)
        for batch in file.iter_batches(batch_size=256, row_groups=list(groups)):
            missing -= batch.num_rows
            yield batch
        if missing or min(counts, default=0) < 0:  # with damaged counts, Arrow may silently return fewer rows
            raise pa.ArrowInvalid("its number of rows differs from the number in its metadata")


def _arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file, or of an Arrow stream, which is the format of the library `datasets`.

    The file is read and not mapped: one that shrinks meanwhile would end the process.
    """
    with pa.PythonFile(open_raw(path)) if is_uri(path) else pa.OSFile(path) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from map(_within_bounds, pa.ipc.open_stream(source))
            return
        for number in range(file.num_record_batches):
            yield _within_bounds(file.get_batch(number))


def _within_bounds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if all of its offsets lead into its buffers. Arrow itself follows them wherever they lead.

    Raises:
        pa.ArrowInvalid: they do not.
    """
    for column in batch.columns:
        try:
            looked_at = column.view(_as_bytes(column.type))  # text that is not UTF-8 is the fault of its row alone
        except pa.ArrowNotImplementedError:
            looked_at = column
        looked_at.validate(full=True)
    return batch


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """A type with bytes in place of text."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    return kind
