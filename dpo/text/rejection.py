"""The reason why a row is not used."""

from __future__ import annotations

from typing import Any, NamedTuple

UNREAD = "unread column"  # the kind of rows with a column that may change the text, and that their reading leaves


class Rejection(NamedTuple):
    """A reason in words, and the kind under which such rows are counted. The caller adds the place of the row."""

    reason: str
    kind: str = "no pair"
    column: str = ""  # the column of the row that is in the way, if it is one


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value, for a reason."""
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
