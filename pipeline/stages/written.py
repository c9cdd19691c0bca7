"""Row ids -> the pairs as people wrote them, for reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.shapes import Reading
from pipeline.config import Data
from pipeline.data.pieces import COPIES, found_in
from pipeline.data.rows import read_rows
from pipeline.data.sources import DataFile
from pipeline.store.tokens import place_of


def pairs_in(file: DataFile, data: Data) -> Iterator[tuple[int, list[PreferencePair | Rejection]]]:
    """Yield the number of each row of a file, from 0, and its pairs, or why there is none."""
    ignore, ways = tuple(data.ignore), (data.pairing, data.margin)
    reading = Reading(file.columns, file.verdict, ignore, data.scored, *ways, COPIES)
    for row in read_rows(file.path):
        yield row.number, list(found_in(row, reading).pairs)


def as_written(identities: Iterable[int], files: list[DataFile], data: Data) -> dict[int, dict[str, str]]:
    """Return the texts of pairs by row id: prompt, chosen, rejected. Files are read as far as the last of them.

    A row that is not found any more has no entry.
    """
    wanted: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for identity in identities:
        file, row, copy = place_of(identity)
        wanted.setdefault(file, {}).setdefault(row, []).append((copy, identity))
    found = {}
    for file, rows in wanted.items():
        last = max(rows)
        for number, pairs in pairs_in(files[file], data):
            for copy, identity in rows.get(number, ()):
                pair = pairs[copy] if copy < len(pairs) else None
                if isinstance(pair, PreferencePair):
                    found[identity] = dict(zip(("prompt", "chosen", "rejected"), map(plain, pair[:3]), strict=True))
            if number >= last:
                break
    return found


def plain(side: Any) -> str:
    """A text as it is; messages without the system's, each behind its role if there are several."""
    if isinstance(side, str):
        return side
    said = [message for message in side if message["role"] != "system"] or list(side)
    if len(said) == 1:
        return str(said[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in said)
