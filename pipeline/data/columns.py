"""Parquet and Arrow files -> rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpo.text.calls import parsed
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
            for value, fault, kind in map(_json_reader(batch.schema), _values(batch)):
                yield Row(index, {"row": index + 1}, value, fault, kind, "" if value is None else str(value)[:120])
                index += 1
    except (pa.ArrowException, OSError, *_UNREADABLE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the content is not at fault: the file cannot be reached
        reason = first_line(error)
        fault = f"the file is damaged from here on: {reason}" if index else f"not {name} file: {reason}"
        yield Row(index, {"row": index + 1}, None, fault, "damaged file", "")


Value = tuple[Any, str | None, str | None]  # a row, or its fault and kind


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


def _values(batch: pa.RecordBatch) -> Iterator[Value]:
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
    """Yield the batches of an Arrow file, or of an Arrow stream, which is the format of the library `datasets`."""
    with pa.PythonFile(open_raw(path)) if is_uri(path) else pa.memory_map(path) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
