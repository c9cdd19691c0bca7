"""A row of a file, before it is interpreted."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    number: int  # 0-based, counts every row of the file
    place: dict[str, int]  # text file: {"line": from 1, "byte": offset in the decompressed file}; else {"row": from 1}
    value: Any  # the row's content; None for a faulty row
    fault: str | None  # a description of the fault, or None
    kind: str | None  # the kind under which the fault is counted
    excerpt: str
