"""Files of rows -> rows with the place they stood at. A broken row is handed on with what is wrong with it."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError

CHUNK = 1 << 20


class Row(NamedTuple):
    number: int  # 0-based, counts every row of the file
    place: dict[str, int]  # {"line": 1-based} of a text file, {"row": 1-based} of Parquet
    value: Any  # what was read, or None
    fault: str | None  # what is wrong with it, or None
    excerpt: str


def list_files(path: str, key: str) -> list[Path]:
    """The files that a config key names.

    Raises:
        InputError: there is no such file, or it is not of a kind that is read.
    """
    place = Path(path)
    if not place.is_file():
        what = "is a folder; name the files in it" if place.is_dir() else "does not exist"
        raise InputError(f"{key} = {path!r}: {what}.")
    if not re.search(r"\.(jsonl|json|ndjson)(\.gz)?$|\.parquet$", place.name):
        raise InputError(f"{key} = {path!r}: only .jsonl, .json (both also .gz) and .parquet files are read.")
    return [place]


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a JSONL, JSON array or Parquet file, in order."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
        start = _first_byte(file)
        yield from _array(file) if start == b"[" else _lines(file)


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is neither blank nor part of a byte order mark; the file is left at its beginning."""
    try:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (EOFError, OSError, zlib.error):
        head = b""  # the reader that follows meets the same damage and says where
    file.seek(0)
    return head[:1]


def _lines(file: BinaryIO) -> Iterator[Row]:
    index, line = 0, 0
    while True:
        line += 1
        try:
            raw = file.readline()
        except (EOFError, OSError, zlib.error) as error:
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
    except (EOFError, OSError, zlib.error) as error:
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


def _parquet(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        yield Row(0, {"row": 1}, None, f"not a Parquet file: {str(error).splitlines()[0]}", "")
        return
    index = 0
    for batch in file.iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            yield Row(index, {"row": index + 1}, value, None, str(value)[:120])
            index += 1
