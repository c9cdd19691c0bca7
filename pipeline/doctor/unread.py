"""Columns that no reading uses -> a finding, with a row of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pipeline.data.rejections import where
from pipeline.data.rows import read_rows
from pipeline.data.sources import DataFile
from pipeline.doctor.findings import Example, Finding, RowText

LOOKED_AT = 200  # rows of each file, for examples
SHOWN = 8  # columns that are named


def unread(counts: dict[str, Any], files: list[DataFile]) -> list[Finding]:
    """Find the columns and the fields of messages and answers that nobody reads."""
    columns: dict[str, int] = counts.get("unread", {})
    if not columns:
        return []
    named = ", ".join(f"{name} ({rows:,} rows)" for name, rows in islice(columns.items(), SHOWN))
    first = next(iter(columns))
    return [
        Finding(
            "columns-unread",
            "warning",
            f"{len(columns):,} columns are read by nobody",
            f"They are no part of what is learnt: {named}{' and others' if len(columns) > SHOWN else ''}.",
            f"If one belongs to the conversation, name it in data.columns; else data.ignore = [{_quoted(first)}] says "
            "so.",
            max(columns.values()),
            max(columns.values()) / max(1, counts["read"]),
            tuple(_examples(list(columns), files)),
        )
    ]


def _quoted(name: str) -> str:
    return '"' + name.partition("[]")[0] + '"'


def _examples(names: list[str], files: list[DataFile]) -> Iterator[Example]:
    """Yield the first row that has each column, with its value there."""
    wanted = names[:3]
    for file in files:
        for row in islice(read_rows(file.path), LOOKED_AT):
            for name in list(wanted):
                value = _value(row.value, name)
                if value is not None:
                    wanted.remove(name)
                    yield Example(RowText(file.path, where(row.place), f"{name} = {str(value)[:120]!r}"))
        if not wanted:
            return


def _value(row: Any, name: str) -> Any:
    """Return the value of a column, or of the first message or answer in it that has a field."""
    column, _, field = name.partition("[].")
    for part in [column] if isinstance(row, Mapping) and column in row else column.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    if not field:
        return row
    items = row if isinstance(row, list) else [row]
    found = (item.get(field) for item in items if isinstance(item, Mapping))
    return next((value for value in found if value is not None), None)
