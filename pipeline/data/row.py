"""A row of a file, before anybody looks at what it means."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    number: int  # 0-based, counts every row of the file
    place: dict[str, int]  # {"line": 1-based, "byte": offset, unpacked} of a text file, {"row": 1-based} of others
    value: Any  # what was read, or None
    fault: str | None  # what is wrong with it, or None
    kind: str | None  # what such faults are counted under
    excerpt: str
