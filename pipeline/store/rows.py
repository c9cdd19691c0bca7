"""Files of rows -> rows with the place they stood at. A broken row is handed on with what is wrong with it."""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.files import open_bytes

DAMAGED = (EOFError, OSError, zlib.error)  # what reading a packed file raises where it is cut or changed


class Row(NamedTuple):
    number: int  # 0-based, counts every row of the file
    place: dict[str, int]  # {"line": 1-based} of a text file, {"row": 1-based} of Parquet and Arrow
    value: Any  # what was read, or None
    fault: str | None  # what is wrong with it, or None
    excerpt: str


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a JSONL, JSON array, CSV, Parquet or Arrow file, in order."""
    if path.suffix in (".parquet", ".arrow"):
        yield from _columns(path)
        return
    with open_bytes(path) as file:
        if re.search(r"\.csv(\.\w+)?$", path.name):
            yield from _csv(file)
        elif _first_byte(file) == b"[":
            yield from _array(file)
        else:
            yield from _lines(file)


def _first_byte(file: Any) -> bytes:
    """The first byte that is neither blank nor part of a byte order mark; the file is left at its beginning."""
    try:
        return file.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except DAMAGED:
        return b""  # the reader that follows meets the same damage and says where


def _lines(file: BinaryIO) -> Iterator[Row]:
    index, line = 0, 0
    while True:
        line += 1
        try:
            raw = file.readline()
        except DAMAGED as error:
            yield Row(index, {"line": line}, None, f"the file is damaged from here on: {error}", "")
            return
        if not raw:
            return
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            yield _row(index, {"line": line}, raw)
            index += 1


def _row(index: int, place: dict[str, int], raw: bytes) -> Row:
    excerpt = raw[:120].decode("utf-8", "replace").strip()
    try:
        text = raw.decode("utf-8")
        value = json.loads(text)
        fault = _half_character(text, value)
        return Row(index, place, value if fault is None else None, fault, excerpt)
    except UnicodeDecodeError as error:
        fault = f"not UTF-8: {error.reason} at byte {error.start} of the row"
    except json.JSONDecodeError as error:
        fault = f"not valid JSON: {error.msg} at character {error.pos}"
    except (RecursionError, ValueError) as error:
        fault = f"not readable JSON: {_unreadable(error)}"
    return Row(index, place, None, fault, excerpt)


def _half_character(text: str, value: Any) -> str | None:
    """JSON can escape half of a surrogate pair, which is no character and which no tokenizer takes."""
    if not re.search(r"\\u[dD][89a-fA-F]", text):
        return None
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not text: it holds {error.object[error.start]!r}, half of a surrogate pair"
    return None


def _unreadable(error: Exception) -> str:
    """What JSON allows and Python does not read."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _array(file: BinaryIO) -> Iterator[Row]:
    """The elements of one JSON array, decoded one by one."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Row(0, {"line": 1}, None, f"not UTF-8: {error.reason} at byte {error.start} of the file", "")
        return
    except DAMAGED as error:
        yield Row(0, {"line": 1}, None, f"the file is damaged: {error}", "")
        return
    decoder, blank = json.JSONDecoder(), re.compile(r"[\s,]*")
    at = text.index("[") + 1
    line, counted, index = 1, 0, 0
    while True:
        at = blank.match(text, at).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        excerpt = text[at : at + 120]
        if excerpt.startswith("]"):
            if text[at + 1 :].strip():
                yield Row(index, {"line": line}, None, "the array ends here, and more follows", excerpt)
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (RecursionError, ValueError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else _unreadable(error)
            yield Row(index, {"line": line}, None, f"not valid JSON from here on: {reason}", excerpt)
            return
        fault = _half_character(text[at:end], value)
        yield Row(index, {"line": line}, value if fault is None else None, fault, excerpt)
        index, at = index + 1, end


def _csv(file: BinaryIO) -> Iterator[Row]:
    """Rows under a line of column names."""
    csv.field_size_limit(2**31 - 1)
    # Bytes that are no UTF-8 come as half characters, so that one bad row does not end the file.
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text)
        names: list[str] | None = None
        index = 0
        while True:
            place = {"line": reader.line_num + 1}
            try:
                cells = next(reader, None)
            except (csv.Error, *DAMAGED) as error:
                yield Row(index, place, None, f"the file is damaged from here on: {error}", "")
                return
            if cells is None:
                return
            fault = _bad_cells(cells, names)
            if names is None and fault is None:
                names = cells
            elif cells:
                excerpt = ",".join(cells)[:120].encode("utf-8", "replace").decode()
                value = dict(zip(names or cells, cells, strict=True)) if fault is None else None
                yield Row(index, place, value, fault, excerpt)
                index += 1


def _bad_cells(cells: list[str], names: list[str] | None) -> str | None:
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell if not cell.isascii()):
        return "not UTF-8"
    if names is not None and cells and len(cells) != len(names):
        return f"{len(cells)} cells under {len(names)} columns"
    return None


def _columns(path: Path) -> Iterator[Row]:
    kind = "a Parquet" if path.suffix == ".parquet" else "an Arrow"
    index = 0
    try:
        for batch in _parquet_batches(path) if path.suffix == ".parquet" else _arrow_batches(path):
            for value in batch.to_pylist():
                yield Row(index, {"row": index + 1}, value, None, str(value)[:120])
                index += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not the content: the file cannot be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fault = f"the file is damaged from here on: {reason}" if index else f"not {kind} file: {reason}"
        yield Row(index, {"row": index + 1}, None, fault, "")


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=1024)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Of an Arrow file, or of a stream, which is what the library datasets writes."""
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
