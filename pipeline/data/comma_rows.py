"""CSV files -> rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.data.chunks import LONGEST, MARK
from pipeline.data.files import DAMAGED
from pipeline.data.lines import ESCAPED, bounded_line, damage, shown
from pipeline.data.row import Row


class _HugeRow(Exception):
    """A row of a CSV file above the limit. The lines behind it can be read."""


class _CsvLines:
    """Decoded lines of a file for csv.reader, which takes as many as a row needs. Counts lines and bytes."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.byte = self.line = self.begun = 0
        self.ended = False

    def begin(self) -> dict[str, int]:
        """Note that a row begins; returns its place."""
        self.begun = self.byte
        return {"line": self.line + 1, "byte": self.byte}

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        raw = self._read()
        if not raw:
            self.ended = True
            raise StopIteration
        text = raw.removeprefix(MARK) if self.line == 1 else raw
        # Bytes that are not UTF-8 become half characters, so that one bad row does not end the file.
        return text.decode("utf-8", "surrogateescape")

    def _read(self) -> bytes:
        """Read a line of a row that is within the limit so far."""
        raw, whole, quotes = bounded_line(self.file, LONGEST)
        self.byte, self.line = self.byte + whole, self.line + bool(raw)
        if self.byte - self.begun > LONGEST:
            # A quote in the lines before is open, as csv.reader asked for more.
            before = self.byte - self.begun > whole
            self._skip(bool((raw.count(b'"') + quotes + before) % 2))
            raise _HugeRow
        return raw

    def _skip(self, quoted: bool) -> None:
        """Read on to the end of a row, without holding it."""
        while quoted:
            raw, whole, quotes = bounded_line(self.file, LONGEST)
            if not raw:
                self.ended = True
                raise csv.Error("the file ends within a row above the limit")
            self.byte, self.line = self.byte + whole, self.line + 1
            quoted ^= bool((raw.count(b'"') + quotes) % 2)


def csv_rows(file: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a CSV file whose first line has the column names.

    Quotes must follow RFC 4180 strictly: otherwise an unclosed quote would swallow the rows after it.
    """
    csv.field_size_limit(LONGEST)
    lines = _CsvLines(file)
    reader = csv.reader(lines, strict=True)
    names: list[str] | None = None
    index = 0
    while True:
        place = lines.begin()
        try:
            cells = next(reader, None)
        except _HugeRow:
            fault = f"a row of {lines.byte - place['byte']:,} bytes; the limit is {LONGEST:,}"
            yield Row(index, place, None, fault, "huge row", "")
            index += 1
            continue
        except csv.Error as error:
            if lines.ended:
                fault = f"a quote opened in this row or after it is not closed: {error}"
                yield Row(index, place, None, fault, "damaged file", "")
                return
            yield Row(index, place, None, f"not valid CSV: {error}", "broken row", "")
            index += 1
            continue
        except DAMAGED as error:
            yield Row(index, place, None, damage(error), "damaged file", "")
            return
        if cells is None:
            return
        if names is None:
            names = [shown(cell) for cell in cells]  # a name that is not UTF-8 may belong to an unused column
        elif cells:
            fault, kind = _bad_cells(cells, names)
            excerpt = shown(",".join(cell[:120] for cell in cells[:120])[:120])
            value = dict(zip(names, cells, strict=True)) if fault is None else None
            yield Row(index, place, value, fault, kind, excerpt)
            index += 1


def _bad_cells(cells: list[str], names: list[str]) -> tuple[str | None, str | None]:
    if any(ESCAPED.search(cell) for cell in cells):
        return "not UTF-8", "not UTF-8"
    if len(cells) != len(names):
        return f"{len(cells)} cells under {len(names)} columns", "broken row"
    return None, None
