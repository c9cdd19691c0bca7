"""Data files -> whether their rows are plain, so that every version of the program has read them alike."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from dpo.text.fields import ABOUT, CHANGES_TEXT, mapped, replaced
from dpo.text.pairs import flags_in
from pipeline.data.rows import read_rows
from pipeline.data.sources import DataFile

READING = 3  # raised when rows that are not plain are read otherwise
FIRST_ROWS = 20
SIDES = ("prompt", "chosen", "rejected")


def reading_version(files: list[DataFile]) -> dict[str, int]:
    """Return what the fingerprint of prepared data must hold beside the files: nothing if all rows seem plain.

    Rows that are not plain were read otherwise by earlier versions, whose tokens must not be taken for these.
    """
    plain = all(_is_plain(row.value, file) for file in files for row in islice(read_rows(file.path), FIRST_ROWS))
    return {} if plain else {"reading": READING}


def _is_plain(row: Any, file: DataFile) -> bool:
    """Tell whether a row is prompt, chosen and rejected, with nothing beside them that may belong to the text."""
    if isinstance(row, Mapping) and file.columns:
        if replaced(row, file.columns):
            return False  # earlier versions lost these columns
        row = mapped(row, file.columns)
    if row is None:
        return True  # a broken row is rejected by every version
    if not isinstance(row, Mapping) or any(not _is_plain_side(row.get(side)) for side in SIDES):
        return False
    if flags_in(tuple(row)):
        return False  # earlier versions read rows whose answers may have changed places
    others = {str(name).lower() for name, value in row.items() if value is not None and name not in SIDES}
    return all(ABOUT.fullmatch(name) and name not in CHANGES_TEXT for name in others)


def _is_plain_side(side: Any) -> bool:
    if isinstance(side, str):
        return side.lstrip()[:1] not in ("[", "{") and "Human:" not in side[:20]
    return isinstance(side, list) and all(
        isinstance(one, Mapping) and {*one} == {"role", "content"} and isinstance(one["content"], str) for one in side
    )
