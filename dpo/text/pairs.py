"""A row of preference data -> its PreferencePairs, or the reason for its rejection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from dpo.text.advice import advised, no_layout, not_read
from dpo.text.beside import template_options
from dpo.text.calls import too_deep
from dpo.text.fields import CHANGES_TEXT, Fields, mapped, of_messages, replaced
from dpo.text.layouts import Layout, layout_of, to_be_said
from dpo.text.messages import NOT_TEXT
from dpo.text.preference import PreferencePair, pair_of
from dpo.text.ranked import LISTS, fields_left
from dpo.text.rejection import UNREAD, Rejection, kind_of
from dpo.text.repeated import Said, repeats
from dpo.text.shapes import Plain, Reading

FLIPPED = re.compile(
    r"((is|was|are|has|label|labels|order|answers|responses|pair)_)*(flip|flipped|swap|swapped|reversed|inverted)"
)
SIDES = ("prompt", "chosen", "rejected")
SYSTEM, TOOLS = ("system", "system_prompt", "system_message"), ("tools", "functions")
CARRIED = frozenset((*NOT_TEXT, *SYSTEM, *TOOLS, "chat_template_kwargs"))  # what may stand beside any pair


class TokenizedPair(NamedTuple):
    """Token ids of one pair. A mask is true where the completion's token is scored.

    `apart` is true if prompt and completion had to be encoded apart (see `tokenize.split_completion`). `cut` is the
    number of tokens cut from the longer side.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_mask: list[bool]
    rejected_mask: list[bool]
    apart: bool
    cut: int


class Found(NamedTuple):
    """The content of a row: its pairs, each perhaps rejected, and the names of columns and fields that nobody reads."""

    pairs: list[PreferencePair | Rejection]
    unread: tuple[str, ...] = ()


def read_row(row: Any, reading: Reading = Reading()) -> Found:  # noqa: B008
    """Read one row: its layout decides which columns are the prompt and the answers.

    A row that has a column which changes the text, and which is not read, is rejected. A rejection says what to write
    so that the row is read, if anything helps.
    """
    if not isinstance(row, Mapping):
        return Found([Rejection(f"a row must be an object with prompt, chosen and rejected, not {kind_of(row)}")])
    found = _read(row, reading)
    first, *more = found.pairs
    if more or not isinstance(first, Rejection) or first.kind not in ("no pair", UNREAD):
        return found
    return found._replace(pairs=[advised(row, reading, first, _read)])


def _read(given: Mapping[str, Any], reading: Reading) -> Found:
    row: Any = {name: value for name, value in given.items() if name not in reading.ignore} if reading.ignore else given
    known = layout_of(Fields(row)) or to_be_said(Fields(row)) if reading.columns else None
    old = None
    if reading.columns:
        old, row = replaced(row, reading.columns), mapped(row, reading.columns)
        if isinstance(row, Rejection):
            return Found([row])
        row = {name: value for name, value in row.items() if name in reading.columns or name not in reading.ignore}
    fields = Fields(row, old)
    layout = layout_of(fields)
    if layout is None or layout.read is None:
        return Found([fields.fault(of_any=True) or no_layout(fields)])
    plain = layout.read(fields, reading)
    shared = _carried(fields)
    rows = plain if isinstance(plain, list) else [plain]
    fault = fields.fault() or _unlike(fields, rows) or _flipped(fields)
    if fault is not None:
        return Found([fault])
    if isinstance(shared, Rejection):
        return Found([shared])
    pairs = [one if isinstance(one, Rejection) else pair_of({**shared, **_filled(one)}, reading) for one in rows]
    return _checked(fields, layout, known, pairs, rows)


def read_pair(row: Any) -> PreferencePair | Rejection:
    """Read the first pair of a row."""
    return read_row(row).pairs[0]


def read_pairs(
    row: Any, pairing: str = "best_worst", margin: float = 0.0, most: int = 2048
) -> list[PreferencePair | Rejection]:
    """Read all pairs of one row, as `Reading` says."""
    return read_row(row, Reading(pairing=pairing, margin=margin, most=most)).pairs


def _flipped(fields: Fields) -> Rejection | None:
    """Find a column such as `is_flipped` that is true: whether its answers have changed places already is unknown."""
    for name in flags_in(tuple(fields.row)):
        if fields.row[name] in (True, "true", "True", "TRUE", "1", "yes"):
            fix = f'data.ignore = ["{name}"] reads such rows as they stand'
            return Rejection(
                f"{name!r} is {fields.row[name]!r}: which answer is the better one is unknown. {fix}", UNREAD
            )
    return None


@lru_cache(maxsize=256)
def flags_in(names: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the columns whose names say that answers may have changed places."""
    return tuple(name for name in names if FLIPPED.fullmatch(str(name).lower()))


def _unlike(fields: Fields, rows: list[Any]) -> Rejection | None:
    """Find a pair of which one answer is messages written as text, and the other a plain text."""
    for row in rows if fields.written else ():
        if isinstance(row, dict) and {type(row["chosen"]), type(row["rejected"])} == {list, str}:
            one = "chosen" if isinstance(row["chosen"], list) else "rejected"
            said = "is a list of messages written as text, and the other answer is not; write both alike"
            return Rejection(f"{one!r} {said}")
    return None


def _filled(plain: Plain) -> Plain:
    return {name: value for name, value in plain.items() if value is not None or name in ("chosen", "rejected")}


def _checked(fields: Fields, layout: Layout, known: Layout | None, pairs: Any, rows: Any) -> Found:
    """Find what the reading has left over. Columns that change the text make the row a rejection."""
    if not any(isinstance(pair, PreferencePair) for pair in pairs):
        return Found(pairs)  # nothing of this row is used
    leaves = layout.leaves | (known.leaves if known else frozenset())
    left = fields.left_over(leaves)
    said = None
    for name in list(left):
        is_old_answer = name in fields.replaced and name in ("chosen", "rejected")
        if name.rpartition(".")[2].lower() in CHANGES_TEXT and not is_old_answer:
            said = said or _said([pair for pair in pairs if isinstance(pair, PreferencePair)])
            if repeats(name, fields.replaced.get(name, fields.row.get(name)), said):
                left.remove(name)
            else:
                return Found([not_read(name)])
    left += [field for key in LISTS if key in fields.taken for field in fields_left(key, fields.row[key])]
    for row in rows:
        for side in SIDES if isinstance(row, dict) else ():
            if isinstance(row[side], (list, Mapping)):
                left += of_messages(side, row[side])
    return Found(pairs, tuple(dict.fromkeys(left)))


def _said(pairs: list[PreferencePair]) -> Said:
    asked = [text for pair in pairs for text in _texts(pair.prompt)]
    return Said(asked, [text for pair in pairs for text in (*_texts(pair.chosen), *_texts(pair.rejected), pair.lead)])


def _texts(side: Any) -> list[str]:
    return [side] if isinstance(side, str) else [message["content"] for message in side]


def _carried(fields: Fields) -> Plain | Rejection:
    """Take the columns that may stand beside any pair: a system text, tools, options of the template; no images."""
    if CARRIED.isdisjoint(fields.row):
        return {}
    for name in NOT_TEXT:
        if fields.take(name):
            why = "ray-align trains on text alone, and would teach answers about what is not seen"
            return Rejection(f"the row has {name!r}: {why}", "images")
    systems = [fields.take(name) for name in SYSTEM if fields.peek(name)]
    if any(too_deep(system) or system != systems[0] for system in systems):
        return Rejection("the row has several columns with a system text, which differ; data.ignore leaves one out")
    tools = [fields.take(name) for name in TOOLS if fields.peek(name)]
    if len(tools) > 1 and (too_deep(tools) or tools[0] != tools[1]):
        return Rejection("the row has both 'tools' and 'functions', which differ; data.ignore leaves one out")
    options = template_options(fields.take("chat_template_kwargs"))
    if isinstance(options, Rejection):
        return options
    found = {"system": systems[0] if systems else None, "tools": tools[0] if tools else None, "options": options}
    found["tools_name"] = None if fields.peek("tools") else fields.first("functions")
    return {name: value for name, value in found.items() if value}
