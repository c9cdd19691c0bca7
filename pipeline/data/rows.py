"""Files -> rows with their places. A broken row is passed on with a description of its fault."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.data.chunks import LONGEST, MARK, Chunk, first_byte
from pipeline.data.columns import column_rows
from pipeline.data.comma_rows import csv_rows
from pipeline.data.files import DAMAGED, open_bytes
from pipeline.data.lines import ESCAPED, bounded_line, damage, shown
from pipeline.data.row import Row


def read_rows(path: str, chunk: Chunk | None = None) -> Iterator[Row]:
    """Yield the rows of a JSONL, JSON array, CSV, Parquet or Arrow file, or of a chunk of it, in order."""
    chunk = chunk or Chunk()
    if path.endswith((".parquet", ".arrow")):
        yield from column_rows(path, chunk)
        return
    with open_bytes(path) as file:
        if re.search(r"\.csv(\.\w+)?$", path):
            yield from csv_rows(file)
        elif chunk.first == 0 and first_byte(file) == b"[":
            yield from _array(file)
        else:
            if chunk.first:
                file.seek(chunk.first)
            yield from _lines(file, chunk)


def _lines(file: BinaryIO, chunk: Chunk) -> Iterator[Row]:
    index, line, byte = chunk.row, chunk.line, chunk.first
    while chunk.end is None or byte < chunk.end:
        line += 1
        place = {"line": line, "byte": byte}
        try:
            raw, whole, _ = bounded_line(file, LONGEST)
            byte, long = byte + whole, whole > len(raw)
        except DAMAGED as error:
            yield Row(index, place, None, damage(error), "damaged file", "")
            return
        if not raw:
            return
        if line == 1:
            raw = raw.removeprefix(MARK)
        if long:
            fault = f"a line of {whole:,} bytes; the limit is {LONGEST:,}"
            yield Row(index, place, None, fault, "huge row", _excerpt(raw))
            index += 1
        elif raw.strip():
            yield _row(index, place, raw)
            index += 1


def _excerpt(raw: bytes) -> str:
    return raw[:120].decode("utf-8", "replace").strip()


def _row(index: int, place: dict[str, int], raw: bytes) -> Row:
    kind = "not JSON"
    try:
        text = raw.decode("utf-8")
        value = json.loads(text)
        fault = _half_character(text, value)
        return Row(index, place, value if fault is None else None, fault, fault and "broken text", _excerpt(raw))
    except UnicodeDecodeError as error:
        fault, kind = f"not UTF-8: {error.reason} at byte {error.start} of the row", "not UTF-8"
    except json.JSONDecodeError as error:
        fault = f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos}"
        if raw.strip() == b"{":
            fault += "; a file that is one object is not read: write a list of rows, or each row on a line"
    except (RecursionError, ValueError) as error:
        fault = f"not readable JSON: {_unreadable(error)}"
    return Row(index, place, None, fault, kind, _excerpt(raw))


def _half_character(text: str, value: Any) -> str | None:
    """Describe half of a surrogate pair in a value, or return None. JSON can escape it; no tokenizer accepts it."""
    if not re.search(r"\\u[dD][89a-fA-F]", text):
        return None
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not text: it contains {error.object[error.start]!r}, half of a surrogate pair"
    return None


def _unreadable(error: Exception) -> str:
    """Describe valid JSON that Python cannot read."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


class _Text:
    """A UTF-8 file as text that is read as needed. The text before `at` has been used and is dropped."""

    STEP = 1 << 20

    def __init__(self, file: BinaryIO):
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")  # one bad row must not end the file
        self.text, self.at, self.ended = "", 0, False
        self.byte, self.line = len(MARK) if file.peek(3)[:3] == MARK else 0, 1  # type: ignore[attr-defined]
        self.step = self.STEP

    def more(self) -> bool:
        """Read more text; False at the end. The size doubles each time, so a long element is parsed few times."""
        if self.ended:
            return False
        raw = self.file.read(self.step)
        self.step *= 2
        self.ended = not raw
        self.text, self.at = self.text[self.at :] + self.decoder.decode(raw, final=self.ended), 0
        return True

    def skip(self, what: re.Pattern[str]) -> None:
        """Skip everything that matches, reading more text where needed."""
        while True:
            self.use(what.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return

    def use(self, end: int) -> str:
        """Return the text up to a position, and move there."""
        used = self.text[self.at : end]
        self.at, self.step = end, self.STEP
        self.byte += len(used.encode("utf-8", "surrogateescape"))
        self.line += used.count("\n")
        return used

    def excerpt(self) -> str:
        return self.text[self.at : self.at + 120]


def _array(file: BinaryIO) -> Iterator[Row]:
    """Yield the elements of a JSON array, decoded one by one."""
    text, index, place = _Text(file), 0, {"line": 1, "byte": 0}
    try:
        text.skip(re.compile(r"\s*"))
        text.use(text.at + 1)
        while True:
            text.skip(re.compile(r"[\s,]*"))
            place = {"line": text.line, "byte": text.byte}
            excerpt = text.excerpt()
            if excerpt.startswith("]"):
                text.use(text.at + 1)
                text.skip(re.compile(r"\s*"))
                if text.excerpt():
                    fault = "the array ends here, but more text follows"
                    yield Row(index, place, None, fault, "damaged file", excerpt)
                return
            value, end = _element(text)
            raw = text.use(end)
            fault, kind = _half_character(raw, value), "broken text"
            if ESCAPED.search(raw):
                fault = kind = "not UTF-8"
            yield Row(index, place, value if fault is None else None, fault, fault and kind, shown(excerpt))
            index += 1
    except json.JSONDecodeError as error:
        fault, kind = f"not valid JSON from here on: {error.msg}", "not JSON"
    except (RecursionError, ValueError) as error:
        fault, kind = f"not valid JSON from here on: {_unreadable(error)}", "not JSON"
    except DAMAGED as error:
        fault, kind = damage(error), "damaged file"
    yield Row(index, place, None, fault, kind, shown(text.excerpt()))


def _element(text: _Text) -> tuple[Any, int]:
    """Return the value that begins here and its end. A number at the end of the text may continue in unread text."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text.text, text.at)
            if end < len(text.text) or not text.more():
                return value, end
        except json.JSONDecodeError:
            if len(text.text) - text.at > LONGEST or not text.more():
                raise


_DECODER = json.JSONDecoder()
