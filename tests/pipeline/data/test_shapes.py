"""Rows as people have them: each is read right, by path alone or by the line that its refusal prints.

`python -m tests.pipeline.data.test_shapes` writes the table of the data guide anew from the same rows.
"""

from __future__ import annotations

import copy
import csv
import json
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo.text.fields import Fields
from dpo.text.layouts import TO_BE_SAID, layout_of, to_be_said
from dpo.text.pairs import Found, PreferencePair, read_row
from dpo.text.rejection import Rejection
from dpo.text.shapes import ASKED, Reading
from dpo.text.strings import mended
from dpo.text.tokenize import Rules, tokenize_pair
from dpo.text.tokenizers import load_tokenizer
from pipeline.config import Data
from pipeline.data.pieces import found_in
from pipeline.data.rows import read_rows
from tests.dpo.text.test_layouts import REFUSED, ROWS, columns_of
from tests.places import DATA, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHAPES, GUIDE = DATA / "shapes", ROOT / "examples" / "guides" / "data.md"
MARKS = ("<!-- table of layouts -->\n", "<!-- end of the table -->\n")
MOST_KEYS = 8  # of a row, in the table
HERE = SHAPES.is_dir()
EXPECTED = [json.loads(line) for line in (SHAPES / "expected.jsonl").read_text().splitlines()] if HERE else []
FILES = list(dict.fromkeys(entry["file"] for entry in EXPECTED))
needs_shapes = pytest.mark.skipif(not HERE, reason="the rows of public layouts are not on this machine")


def rows_of(name: str) -> list:
    """The rows of a file as the program reads them."""
    if name.endswith("_rows.jsonl"):
        return list(map(json.loads, (SHAPES / name).read_text(encoding="utf-8").splitlines()))
    return [row.value for row in read_rows(str(SHAPES / name))]


def lines_in(reason: str) -> dict:
    """What a refusal says to write under [data]."""
    found = re.findall(r'data\.(columns|verdict|ignore) = (\{[^}]*\}|\[[^]]*\]|"[^"]*")', reason)
    return {key: value for key, text in reversed(found) for value in tomllib.loads(f"a = {text}").values()}


def reading_for(rows: list) -> tuple[Reading, dict]:
    """How the rows of a file are read: by path alone, or by the line that the first refusal prints."""
    found = [pair for row in rows for pair in read_row(row).pairs]
    refused = [pair for pair in found if isinstance(pair, Rejection) and pair.kind in ("no pair", "unread column")]
    lines = lines_in(refused[0].reason) if refused else {}
    return Reading(lines.get("columns", {}), lines.get("verdict"), tuple(lines.get("ignore", ()))), lines


def settled(found: Found) -> Found:
    """The pairs of a row as they are encoded where the tokenizer has a chat template."""
    return found._replace(pairs=[mended(pair, None).pair for pair in found.pairs])


def plain(pair: PreferencePair) -> dict:
    """A pair in the form of the file of expected readings."""
    found = {name: turns(getattr(pair, name), role) for name, role in (("prompt", "user"), ("chosen", "assistant"))}
    found["rejected"] = turns(pair.rejected, "assistant")
    more = {"tools": pair.tools, "template_options": pair.options, "unscored": pair.lead}
    sides = [[int(m.get("scored", True) and m["role"] == "assistant") for m in s] for s in pair[1:3] if pair.chat]
    if any("scored" in message for side in pair[1:3] if pair.chat for message in side):
        more["scored"] = sides
    return json.loads(json.dumps({**found, **{name: value for name, value in more.items() if value}}))


def turns(side, role: str) -> list:
    if isinstance(side, str):
        return [[role, side]]
    fields = [([m["tool_calls"]] if m.get("tool_calls") else []) for m in side]
    thoughts = [{n: m[n] for n in ("reasoning_content",) if m.get(n)} for m in side]
    return [
        [m["role"], m["content"], *calls, *([thought] if thought else [])]
        for m, calls, thought in zip(side, fields, thoughts, strict=True)
    ]


def wrong(found: Found, expected: dict) -> str | None:
    """What is wrong with a reading; None if nothing is."""
    pairs = [plain(pair) for pair in found.pairs if isinstance(pair, PreferencePair)]
    refused = [pair for pair in found.pairs if isinstance(pair, Rejection)]
    if "verdict" in expected:
        fits = not pairs and (expected["verdict"] != "tie" or refused[0].kind == "tie")
        return None if fits else f"read as {pairs or refused}"
    want = [{name: value for name, value in pair.items() if name != "say"} for pair in expected["pairs"]]
    return None if pairs == want else f"read as {pairs or refused} instead of {want}"


@needs_shapes
@pytest.mark.parametrize("name", FILES)
def test_every_row_is_read_right(name):
    rows = rows_of(name)
    reading, _ = reading_for(rows)
    for row, expected in zip(rows, (e for e in EXPECTED if e["file"] == name), strict=True):
        assert wrong(settled(read_row(row, reading)), expected) is None


def test_what_a_refusal_prints_can_be_written():
    """The configuration takes the lines, for rows of no known layout and for those whose verdict must be said."""
    for _, line in REFUSED:
        Data.model_validate({"train": "x", "columns": columns_of(line)})
    for known in TO_BE_SAID:
        assert known.lines and Data.model_validate({"train": "x", **lines_in(known.lines)}).verdict is not None


@needs_shapes
@pytest.mark.parametrize("name", FILES)
def test_other_formats_give_the_same_ids(name, tmp_path):
    """The same rows as JSONL, Parquet, Arrow and CSV: formats of cells hold lists as JSON."""
    rows = rows_of(name)
    reading, _ = reading_for(rows)
    expected = [ids(settled(read_row(row, reading))) for row in rows]
    for path in written(tmp_path, rows):
        found = [ids(settled(found_in(row, reading))) for row in read_rows(str(path))]
        assert found == expected, path.name


TOKENIZER = load_tokenizer("bytes", chat_template="chatml")


def ids(found: Found) -> list:
    """Token ids of the pairs; of a rejection its kind."""
    return [
        tokenize_pair(TOKENIZER, pair, Rules(100_000)) if isinstance(pair, PreferencePair) else pair.kind
        for pair in found.pairs
    ]


def written(folder: Path, rows: list) -> list[Path]:
    paths = [folder / f"a.{ending}" for ending in ("jsonl", "parquet", "arrow", "csv")]
    paths[0].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        table = pa.Table.from_pylist([dict(row) for row in rows])
        pq.write_table(table, paths[1])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):  # a type that Arrow or Parquet lacks
        paths = [paths[0], paths[3]]
    else:
        with pa.OSFile(str(paths[2]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with paths[-1].open("w", newline="", encoding="utf-8") as out:
        sheet = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)))
        sheet.writeheader()
        for row in rows:
            cells = {n: json.dumps(v) if isinstance(v, (dict, list)) else v for n, v in row.items()}
            sheet.writerow(cells)
    return paths


# Nothing is silently wrong


WHOLE = ("tools", "functions", "tool_calls", "chat_template_kwargs", "input")  # passed on whole, whatever is in them


def places(value, path=()):
    """Every object in a value that is read field by field, by its path."""
    if isinstance(value, dict):
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if key not in WHOLE or "preferred_output" in (value if not path else ()):
            yield from places(one, (*path, key))


OTHER_TEXT = "Mind that 2+2 is not meant in base three here."
ADDED = ("context", "system_prompt", "history", "documents", "input", "messages", "functions", "images", "prefix")


def mutated(row: dict, dice: random.Random) -> tuple[dict, str]:
    """A row with one key renamed, nested, dropped, or added, and what was done."""
    row = copy.deepcopy(row)
    spots = list(places(row))
    spot = row
    for step in dice.choice(spots):
        spot = spot[step]
    how = dice.choice(("rename", "nest", "drop", "add"))
    if how == "add":
        name = dice.choice([name for name in ADDED if name not in spot])
        spot[name] = [OTHER_TEXT] if name == "images" else OTHER_TEXT
        return row, f"{name} added"
    name = dice.choice(list(spot)) if spot else ""
    if spot and how == "rename":
        new = dice.choice((f"{name}_x", f"my_{name}", name.upper() + "_"))
        spot[new] = spot.pop(name)
    elif spot and how == "drop":
        alone = (row is spot and name in (*ASKED, "input")) or (name == "content" and "reasoning_content" in spot)
        if not alone:  # two answers without a prompt, and thoughts without an answer, are rows of their own
            del spot[name]
    elif spot:
        spot[name] = {dice.choice(("value", "x", "data")): spot[name]}
    return row, f"{how} {name}"


def test_no_change_of_a_row_is_silently_wrong():
    """A changed row is read as before, refused, or what it has beside its pair is counted."""
    dice, seen, silent = random.Random(29), {"same": 0, "refused": 0, "counted": 0}, []
    for number in range(1200):
        _, row, pair = ROWS[number % len(ROWS)]
        changed, what = mutated(row, dice)
        found = read_row(changed)
        if any(isinstance(one, Rejection) for one in found.pairs):
            seen["refused"] += 1
        elif found.unread:
            seen["counted"] += 1
        elif found.pairs == [pair] or (what.startswith("drop") and ends(found) == ends(Found([pair]))):
            seen["same"] += 1
        elif OTHER_TEXT not in str(found.pairs):  # what was added is read
            silent.append((what, changed, found.pairs))
    assert silent == []
    assert min(seen.values()) > 30


def ends(found: Found) -> list:
    """The last texts of the answers of each pair: what is gone from a row may be gone from its pair, and no more."""
    pairs = [pair for pair in found.pairs if isinstance(pair, PreferencePair)]
    return [[side if isinstance(side, str) else side[-1]["content"] for side in pair[1:3]] for pair in pairs]


def bare(found: Found) -> str:
    """Pairs without the ids of calls, which say nothing of their own."""
    return re.sub(r"'id': '\w+', ", "", str(found.pairs))


@needs_shapes
def test_no_change_of_a_public_row_is_silently_wrong():
    dice, silent = random.Random(30), []
    rows = [
        (row, reading)
        for name in FILES
        for rows in [rows_of(name)]
        for reading in [reading_for(rows)[0]]
        for row in rows
    ]
    for number in range(1200):
        row, reading = rows[number % len(rows)]
        changed, what = mutated(row, dice)
        found, before = read_row(changed, reading), read_row(row, reading)
        read = [pair for pair in found.pairs if isinstance(pair, PreferencePair)]
        refused = [sum(isinstance(pair, Rejection) for pair in pairs.pairs) for pairs in (before, found)]
        fine = not read or refused[1] > refused[0] or found.unread or OTHER_TEXT in str(read)
        if not fine and bare(found) != bare(before) and not (what.startswith("drop") and ends(found) == ends(before)):
            silent.append((what, changed, found.pairs))
    assert silent == []


# The guide


def table() -> str:
    """The tables of the guide: rows that need a line, with what to write; the keys of the others, by their layout."""
    lined = ["| keys of a row | known as | to be written under `[data]` |\n| --- | --- | --- |\n"]
    others: dict[str, list[str]] = {}
    for name in FILES:
        rows = rows_of(name)
        _, write = reading_for(rows)
        known = layout_of(Fields(rows[0])) or to_be_said(Fields(rows[0]))
        layout = known.name if known else "a refusal"
        keys = ", ".join(f"`{key}`" for key in list(rows[0])[:MOST_KEYS]) + (
            ", ..." if len(rows[0]) > MOST_KEYS else ""
        )
        if write:
            said = " and ".join(f"`{key} = {_toml(value)}`" for key, value in sorted(write.items()))
            lined.append(f"| {keys} | {layout} | {said} |\n")
        elif any("pairs" in entry for entry in EXPECTED if entry["file"] == name):
            others.setdefault(layout, []).append(keys)
    plain = ["\nThe others need no line:\n\n| known as | keys of a row |\n| --- | --- |\n"]
    plain += [f"| {layout} | {'<br>'.join(dict.fromkeys(keys))} |\n" for layout, keys in others.items()]
    return "".join(lined + plain)


def _toml(value) -> str:
    if isinstance(value, dict):
        keys = ((f'"{key}"' if key.isdigit() else key, text) for key, text in value.items())
        return "{ " + ", ".join(f'{key} = "{text}"' for key, text in keys) + " }"
    return json.dumps(value)


@needs_shapes
def test_the_table_of_the_guide_is_that_of_the_rows():
    """If not: `python -m tests.pipeline.data.test_shapes`."""
    between = GUIDE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert between == table()


if __name__ == "__main__":
    before, _, rest = GUIDE.read_text(encoding="utf-8").partition(MARKS[0])
    GUIDE.write_text(before + MARKS[0] + table() + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
