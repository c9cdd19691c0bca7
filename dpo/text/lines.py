"""The lines of a configuration that would read a row: as values, and as they are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo.text.verdict import Verdict


class Lines(NamedTuple):
    """The settings to write under [data], and how sure they are.

    Attributes:
        columns: our names of columns -> those of the row.
        choices: values of data.verdict, each with the words that say when it is right. Of one alone the words are "".
        ignore: columns that are not read.
        when: words behind the line, which say when it is right.
        doubt: 0 where the names of the row tell what it is; the higher, the less they do.
    """

    columns: Mapping[str, str] = {}
    choices: tuple[tuple[Verdict, str], ...] = ()
    ignore: tuple[str, ...] = ()
    when: str = ""
    doubt: int = 0


def said(lines: Lines) -> str:
    """Return the lines as they are printed, such as `data.columns = { prompt = "question" }`."""
    parts = []
    if lines.columns:
        columns = ", ".join(f"{ours} = {toml(theirs)}" for ours, theirs in lines.columns.items())
        parts.append(f"data.columns = {{ {columns} }}")
    if lines.ignore:
        parts.append(f"data.ignore = [{', '.join(map(toml, lines.ignore))}]")
    choices = [f"data.verdict = {toml(verdict)}{' ' if when else ''}{when}" for verdict, when in lines.choices]
    if len(choices) == 1:
        parts += choices
    elif choices:
        parts.append(f"{', or '.join(choices)}: the row alone does not tell which")
    behind = ", " if lines.choices and lines.choices[0][1] else " "
    return f"{' and '.join(parts)}{behind if lines.when else ''}{lines.when}"


def toml(value: Any) -> str:
    """Return a text or a table of texts as TOML."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{toml(key)} = {toml(one)}' for key, one in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
