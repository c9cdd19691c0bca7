"""Pieces that readers of text share: a line of bounded length, damage, and bytes that are not UTF-8."""

from __future__ import annotations

import re
from typing import BinaryIO

SKIPPED = 1 << 20  # bytes of too long a line that are read at once
ESCAPED = re.compile("[\udc80-\udcff]")  # stand-ins for bytes that are not UTF-8


def bounded_line(file: BinaryIO, most: int) -> tuple[bytes, int, int]:
    """Read one line of a file, of which at most so many bytes are held.

    Returns:
        the line, cut after `most` bytes; its whole length; and the quotes in what was cut off.
    """
    raw = file.readline(most + 1)
    if len(raw) <= most or raw.endswith(b"\n"):
        return raw, len(raw), 0
    whole, quotes = len(raw), raw.count(b'"', most)
    while more := file.readline(SKIPPED):
        whole, quotes = whole + len(more), quotes + more.count(b'"')
        if more.endswith(b"\n"):
            break
    return raw[:most], whole, quotes


def damage(error: Exception) -> str:
    """Describe damaged content. An error that is not about the content, such as a network failure, is raised."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return f"the file is damaged from here on: {error}"


def shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
