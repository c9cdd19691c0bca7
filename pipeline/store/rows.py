"""Files of rows -> rows with the place they stood at. A broken row is handed on with what is wrong with it."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.chunks import LONGEST, MARK, Chunk, first_byte
from pipeline.store.files import DAMAGED, is_uri, open_bytes, open_raw


class Row(NamedTuple):
    number: int  # 0-based, counts every row of the file
    place: dict[str, int]  # {"line": 1-based, "byte": offset, unpacked} of a text file, {"row": 1-based} of others
    value: Any  # what was read, or None
    fault: str | None  # what is wrong with it, or None
    kind: str | None  # what such faults are counted under
    excerpt: str


def read_rows(path: str, chunk: Chunk | None = None) -> Iterator[Row]:
    """Every row of a JSONL, JSON array, CSV, Parquet or Arrow file, or of a chunk of it, in order."""
    chunk = chunk or Chunk()
    if path.endswith((".parquet", ".arrow")):
        yield from _columns(path, chunk)
        return
    with open_bytes(path) as file:
        if re.search(r"\.csv(\.\w+)?$", path):
            yield from _csv(file)
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
        place, here = {"line": line, "byte": byte}, byte
        try:
            raw = file.readline(LONGEST + 1)
            byte += len(raw)
            long = len(raw) > LONGEST and not raw.endswith(b"\n")
            while long and (more := file.readline(LONGEST)):
                byte += len(more)
                if more.endswith(b"\n"):
                    break
        except DAMAGED as error:
            yield Row(index, place, None, _damage(error), "damaged file", "")
            return
        if not raw:
            return
        if line == 1:
            raw = raw.removeprefix(MARK)
        if long:
            fault = f"a line of {byte - here:,} bytes, and rows have at most {LONGEST:,}"
            yield Row(index, place, None, fault, "huge row", _excerpt(raw))
            index += 1
        elif raw.strip():
            yield _row(index, place, raw)
            index += 1


def _damage(error: Exception) -> str:
    """What is wrong with the content. That a file cannot be had, as when a network fails, is not: then it is raised."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return f"the file is damaged from here on: {error}"


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
        fault = f"not valid JSON: {error.msg} at character {error.pos}"
    except (RecursionError, ValueError) as error:
        fault = f"not readable JSON: {_unreadable(error)}"
    return Row(index, place, None, fault, kind, _excerpt(raw))


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


class _Text:
    """A UTF-8 file as text that is read on as it is needed; what lies before `at` was used and is forgotten."""

    STEP = 1 << 20

    def __init__(self, file: BinaryIO):
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")  # so that one bad row ends nothing
        self.text, self.at, self.ended = "", 0, False
        self.byte, self.line = len(MARK) if file.peek(3)[:3] == MARK else 0, 1  # type: ignore[attr-defined]
        self.step = self.STEP

    def more(self) -> bool:
        """Read on; each time twice as much, so that a long element is not tried too often."""
        if self.ended:
            return False
        raw = self.file.read(self.step)
        self.step *= 2
        self.ended = not raw
        self.text, self.at = self.text[self.at :] + self.decoder.decode(raw, final=self.ended), 0
        return True

    def skip(self, what: re.Pattern[str]) -> None:
        """Over all that matches, however far it goes."""
        while True:
            self.use(what.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return

    def use(self, end: int) -> str:
        """What lies before this position."""
        used = self.text[self.at : end]
        self.at, self.step = end, self.STEP
        self.byte += len(used.encode("utf-8", "surrogateescape"))
        self.line += used.count("\n")
        return used

    def excerpt(self) -> str:
        return self.text[self.at : self.at + 120]


def _array(file: BinaryIO) -> Iterator[Row]:
    """The elements of one JSON array, decoded one by one."""
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
                    fault = "the array ends here, and more follows"
                    yield Row(index, place, None, fault, "damaged file", excerpt)
                return
            value, end = _element(text)
            raw = text.use(end)
            fault, kind = _half_character(raw, value), "broken text"
            if _ESCAPED.search(raw):
                fault = kind = "not UTF-8"
            yield Row(index, place, value if fault is None else None, fault, fault and kind, _shown(excerpt))
            index += 1
    except json.JSONDecodeError as error:
        fault, kind = f"not valid JSON from here on: {error.msg}", "not JSON"
    except (RecursionError, ValueError) as error:
        fault, kind = f"not valid JSON from here on: {_unreadable(error)}", "not JSON"
    except DAMAGED as error:
        fault, kind = _damage(error), "damaged file"
    yield Row(index, place, None, fault, kind, _shown(text.excerpt()))


_ESCAPED = re.compile("[\udc80-\udcff]")  # what became of bytes that are no UTF-8


def _shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _element(text: _Text) -> tuple[Any, int]:
    """The value that begins here, and where it ends. A number may go on where the text read so far ends."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text.text, text.at)
            if end < len(text.text) or not text.more():
                return value, end
        except json.JSONDecodeError:
            if len(text.text) - text.at > LONGEST or not text.more():
                raise


_DECODER = json.JSONDecoder()


class _CsvLines:
    """Decoded lines of a file for csv.reader, which takes just as many as a row needs; knows how far it is."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.byte = self.line = 0
        self.ended = False

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        raw = self.file.readline()
        if not raw:
            self.ended = True
            raise StopIteration
        text = raw.removeprefix(MARK) if self.line == 0 else raw
        self.byte, self.line = self.byte + len(raw), self.line + 1
        # Bytes that are no UTF-8 come as half characters, so that one bad row does not end the file.
        return text.decode("utf-8", "surrogateescape")


def _csv(file: BinaryIO) -> Iterator[Row]:
    """Rows under a line of column names.

    Quotes must stand as RFC 4180 has them: else one that is not closed would take the rows after it into its cell.
    """
    csv.field_size_limit(LONGEST)
    lines = _CsvLines(file)
    reader = csv.reader(lines, strict=True)
    names: list[str] | None = None
    index = 0
    while True:
        place = {"line": lines.line + 1, "byte": lines.byte}
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if lines.ended:
                fault = f"a quote opened in this row or after it is not closed: {error}"
                yield Row(index, place, None, fault, "damaged file", "")
                return
            yield Row(index, place, None, f"not valid CSV: {error}", "broken row", "")
            index += 1
            continue
        except DAMAGED as error:
            yield Row(index, place, None, _damage(error), "damaged file", "")
            return
        if cells is None:
            return
        if names is None:
            names = [_shown(cell) for cell in cells]  # a name that is not UTF-8 need not be one that is used
        elif cells:
            fault, kind = _bad_cells(cells, names)
            excerpt = _shown(",".join(cells)[:120])
            value = dict(zip(names, cells, strict=True)) if fault is None else None
            yield Row(index, place, value, fault, kind, excerpt)
            index += 1


def _bad_cells(cells: list[str], names: list[str]) -> tuple[str | None, str | None]:
    if any(_ESCAPED.search(cell) for cell in cells):
        return "not UTF-8", "not UTF-8"
    if len(cells) != len(names):
        return f"{len(cells)} cells under {len(names)} columns", "broken row"
    return None, None


def _columns(path: str, chunk: Chunk) -> Iterator[Row]:
    name = "a Parquet" if path.endswith(".parquet") else "an Arrow"
    index = chunk.row
    try:
        for batch in _parquet_batches(path, chunk) if path.endswith(".parquet") else _arrow_batches(path):
            for value, fault, kind in _values(batch):
                yield Row(index, {"row": index + 1}, value, fault, kind, "" if value is None else str(value)[:120])
                index += 1
    except (pa.ArrowException, OSError, *_UNREADABLE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not the content: the file cannot be had
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fault = f"the file is damaged from here on: {reason}" if index else f"not {name} file: {reason}"
        yield Row(index, {"row": index + 1}, None, fault, "damaged file", "")


def _values(batch: pa.RecordBatch) -> Iterator[tuple[Any, str | None, str | None]]:
    """Every row of a batch, or what is wrong with it and its kind: Arrow looks into values when they are asked for."""
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
        except _UNREADABLE as error:  # as a date that Python does not know
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
        if missing or min(counts, default=0) < 0:  # Arrow may find less, without a word, where its counts are damaged
            raise pa.ArrowInvalid("it holds another number of rows than it says")


def _arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Of an Arrow file, or of a stream, which is what the library datasets writes."""
    with pa.PythonFile(open_raw(path)) if is_uri(path) else pa.memory_map(path) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
