"""Files and chat templates that mean harm, and what they come to. Run as a program: one line of JSON a case."""

from __future__ import annotations

import gzip
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MB = 1 << 20
GOOD = {"prompt": "p", "chosen": "yes", "rejected": "no"}
HEAD = b"prompt,chosen,rejected\n"
LONG = b"x" * MB, 100
GOOD_LINE, GOOD_CELLS = json.dumps(GOOD).encode() + b"\n", b"p,yes,no\n"
CHAT = {
    "prompt": [{"role": "user", "content": "Where is Oslo?"}],
    "chosen": [{"role": "assistant", "content": "In Norway."}],
    "rejected": [{"role": "assistant", "content": "In Peru."}],
}


def packed(name: str, *parts: bytes | tuple[bytes, int]) -> Callable[[Path], Path]:
    """A file of these parts, packed as its name says; (content, n) is content n times over."""

    def write(folder: Path) -> Path:
        path = folder / name
        with _opened(path) as out:
            for part in parts:
                content, times = part if isinstance(part, tuple) else (part, 1)
                for _ in range(times):
                    out.write(content)
        return path

    return write


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 1)
    return pa.CompressedOutputStream(str(path), "zstd") if path.suffix == ".zst" else path.open("wb")


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def cut(name: str, kept: float, *parts: bytes | tuple[bytes, int]) -> Callable[[Path], Path]:
    """The same, without its end."""

    def write(folder: Path) -> Path:
        path = packed(name, *parts)(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        return path

    return write


def repeated(rows: int, size: int) -> dict[str, pa.Array]:
    """Three columns of one text of `size` bytes each, which every row refers to."""
    indices = pa.array([0] * rows, pa.int32())
    return {name: pa.DictionaryArray.from_arrays(indices, [name + "x" * size]) for name in GOOD}


def parquet(columns: Callable[[], dict[str, Any]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns()), folder / "a.parquet", compression="zstd", store_schema=False)
        return folder / "a.parquet"

    return write


def arrow(columns: Callable[[], dict[str, Any]], stream: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = pa.table(columns())
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(folder / "a.arrow"), table.schema) as out:
            out.write_table(table)
        return folder / "a.arrow"

    return write


def offsets(*changed: int, stream: bool = False) -> Callable[[Path], Path]:
    """An Arrow file of five rows, the offsets of whose first text column are others."""

    def write(folder: Path) -> Path:
        texts = {name: [f"{name}{i}" for i in range(5)] for name in GOOD}
        path = arrow(lambda: texts, stream)(folder)
        right = struct.pack("<6i", *(7 * i for i in range(6)))
        content = path.read_bytes()
        assert right in content
        path.write_bytes(content.replace(right, struct.pack("<6i", *changed), 1))
        return path

    return write


def one_row(more: Any) -> dict[str, Any]:
    """As many good rows as there are values of a further column, which is often one."""
    return {**{name: [value] * len(more) for name, value in GOOD.items()}, "more": more}


def lists_of_texts() -> dict[str, Any]:
    """One row with a list of a hundred thousand references to a text of one megabyte."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * MB])
    return one_row(pa.ListArray.from_arrays([0, 100_000], values))


def messages(size: int, rows: int) -> dict[str, Any]:
    content = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * size])
    role = pa.array(["user"] * rows)
    side = pa.ListArray.from_arrays(
        list(range(rows + 1)), pa.StructArray.from_arrays([role, content], ["role", "content"])
    )
    return dict.fromkeys(GOOD, side)


def views() -> dict[str, Any]:
    """Five hundred views of one text of a megabyte."""
    view = struct.pack("<i4sii", MB, b"xxxx", 0, 0)
    buffers = [None, pa.py_buffer(view * 500), pa.py_buffer(b"x" * MB)]
    return dict.fromkeys(GOOD, pa.Array.from_buffers(pa.string_view(), 500, buffers))


def ends_encoded() -> dict[str, Any]:
    return dict.fromkeys(GOOD, pa.RunEndEncodedArray.from_arrays(pa.array([500], pa.int32()), ["x" * MB]))


def _members(count: int) -> Callable[[Path], Path]:
    """A file of so many gzip members, each of one row."""
    return raw("a.jsonl.gz", gzip.compress(GOOD_LINE) * count)


def _nested(depth: int) -> Any:
    value: Any = ["x"]
    for _ in range(depth):
        value = [value]
    return value


def _parquet_cut(kept: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = parquet(lambda: repeated(100, 100))(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        return path

    return write


def _parquet_footer(folder: Path) -> Path:
    """A file that says of its footer that it has four billion bytes."""
    path = parquet(lambda: repeated(100, 100))(folder)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1")
    return path


UNLIKE = [json.dumps({**GOOD, "n": i * 7919}).encode() + b"\n" for i in range(5000)]
DAMAGED = {"damaged file": 1, "pairs": -1}  # however many rows there are before
ONE_HUGE = {"huge row": 1, "pairs": 1}
LONG_ROW = b'{"prompt": "p", "rejected": "no", "chosen": "'
# name -> the file, and how many rows are used (as "pairs") and are refused as what
FILES: dict[str, tuple[Callable[[Path], Path], dict[str, int]]] = {
    "csv.gz: a line of 100 MB": (packed("a.csv.gz", HEAD, LONG, b"\n", GOOD_CELLS), ONE_HUGE),
    "csv.zst: a line of 100 MB": (packed("a.csv.zst", HEAD, LONG, b"\n", GOOD_CELLS), ONE_HUGE),
    "csv.gz: 100 MB in quotes, in short lines": (
        packed("a.csv.gz", HEAD, b'"', ((b"x" * 89 + b",yyyyyyyy\n") * 10_000, 80), b'",a,b\n', GOOD_CELLS),
        ONE_HUGE,
    ),
    "csv.gz: 100 MB in quotes, in one line": (
        packed("a.csv.gz", HEAD, b'a,"', (b"x,\n" + b"y" * MB, 100), b'",b\n', GOOD_CELLS),
        ONE_HUGE,
    ),
    "csv.gz: a quote that is not closed in 100 MB": (
        packed("a.csv.gz", HEAD, GOOD_CELLS, b'"', ((b"x" * 97 + b",a\n") * 10_000, 80)),
        {"damaged file": 1, "pairs": 1},
    ),
    "csv.gz: names of 100 MB": (packed("a.csv.gz", LONG, b"\n", GOOD_CELLS), {"huge row": 1}),
    "csv: a row of a million cells": (
        packed("a.csv", HEAD, (b"x," * 1000, 1000), b"\n", GOOD_CELLS),
        {"broken row": 1, "pairs": 1},
    ),
    "csv: bytes that are no text": (packed("a.csv", HEAD, b"\xff\xfe,a,b\n", GOOD_CELLS), {"not UTF-8": 1, "pairs": 1}),
    "csv: null bytes": (packed("a.csv", HEAD, b"\0,\0a,b\n", GOOD_CELLS), {"broken text": 1, "pairs": 1}),
    "jsonl.gz: a line of 100 MB": (packed("a.jsonl.gz", LONG, b"\n", GOOD_LINE), ONE_HUGE),
    "jsonl.zst: a line of 100 MB": (packed("a.jsonl.zst", LONG, b"\n", GOOD_LINE), ONE_HUGE),
    "jsonl.gz: 100 MB of blank lines": (
        packed("a.jsonl.gz", ((b" " * 99 + b"\n") * 1000, 1000), GOOD_LINE),
        {"pairs": 1},
    ),
    "jsonl.gz: a good row of 60 MB": (
        packed("a.jsonl.gz", LONG_ROW, (b"x" * MB, 60), b'"}\n', GOOD_LINE),
        {"too long": 1, "pairs": 1},
    ),
    "jsonl: 100,000 open braces": (
        packed("a.jsonl", (b'{"a":', 100_000), b"\n", GOOD_LINE),
        {"not JSON": 1, "pairs": 1},
    ),
    "jsonl: a number of a million digits": (
        packed("a.jsonl", b'{"prompt": ', (b"9" * 1000, 1000), b"}\n", GOOD_LINE),
        {"not JSON": 1, "pairs": 1},
    ),
    "jsonl: half a character": (
        packed("a.jsonl", b'{"prompt": "\\ud800"}\n', GOOD_LINE),
        {"broken text": 1, "pairs": 1},
    ),
    "jsonl: null bytes": (packed("a.jsonl", b"\0" * 1000 + b"\n", GOOD_LINE), {"not JSON": 1, "pairs": 1}),
    "jsonl: 20,000 messages": (
        packed("a.jsonl", json.dumps({**CHAT, "prompt": CHAT["prompt"] * 20_000}).encode() + b"\n", GOOD_LINE),
        {"too long": 1, "pairs": 1},
    ),
    "json.gz: an array of a text of 100 MB": (packed("a.json.gz", b'["', LONG, b'"]'), {"no pair": 1}),
    "json.gz: 100 MB of blanks in brackets": (packed("a.json.gz", b"[[[", (b" " * MB, 100), b"]]]"), {"no pair": 1}),
    "json: 100,000 open brackets": (packed("a.json", (b"[", 100_000)), {"not JSON": 1}),
    "gz without its end": (cut("a.jsonl.gz", 0.5, (GOOD_LINE, 5000)), DAMAGED),
    "gz that is none": (raw("a.jsonl.gz", b"\x1f\x8b" + b"x" * 1000), {"damaged file": 1}),
    "zst without its end": (cut("a.jsonl.zst", 0.5, *UNLIKE), DAMAGED),
    "csv: carriage returns alone": (packed("a.csv", HEAD, (b"\r" * 1000, 1000), GOOD_CELLS), {"broken row": 1}),
    "csv: UTF-16": (
        raw("a.csv", "prompt,chosen,rejected\np,yes,no\n".encode("utf-16")),
        {"no pair": 1, "broken row": 1},
    ),
    "csv: 20,000 names": (packed("a.csv", (b"x,", 20_000), b"y\n", (b"1,", 20_000), b"2\n"), {"no pair": 1}),
    "jsonl: one key 100,000 times": (
        packed("a.jsonl", b"{", (b'"prompt": "a", ', 100_000), b'"chosen": "yes", "rejected": "no"}\n', GOOD_LINE),
        {"pairs": 2},
    ),
    "jsonl: a key of 10 MB": (
        packed("a.jsonl", b'{"', (b"k" * MB, 10), b'": 1}\n', GOOD_LINE),
        {"no pair": 1, "pairs": 1},
    ),
    "jsonl: numbers that are none": (
        packed("a.jsonl", b'{"prompt": "p", "chosen": NaN, "rejected": -Infinity}\n', GOOD_LINE),
        {"no pair": 1, "pairs": 1},
    ),
    "jsonl: an object of a million keys": (
        packed("a.jsonl", b"{", b",".join(b'"%d": 0' % i for i in range(1_000_000)), b"}\n", GOOD_LINE),
        {"no pair": 1, "pairs": 1},
    ),
    "jsonl: lists 500 deep": (
        packed("a.jsonl", b'{"prompt": ', b"[" * 500, b"]" * 500, b', "chosen": "a", "rejected": "b"}\n', GOOD_LINE),
        {"no pair": 1, "pairs": 1},
    ),
    "jsonl: a million line breaks in a text": (
        packed("a.jsonl", LONG_ROW, (b"\\n" * 1000, 1000), b'"}\n', GOOD_LINE),
        {"empty side": 1, "pairs": 1},
    ),
    "jsonl: escape sequences": (
        packed("a.jsonl", b'{"prompt": "\\u001b[2J\\u202e", "chosen": "a", "rejected": "b"}\n', GOOD_LINE),
        {"pairs": 2},
    ),
    "jsonl.gz: 1,000 members": (_members(1000), {"pairs": 1000}),
    "jsonl.gz: packed twice": (raw("a.jsonl.gz", gzip.compress(gzip.compress(GOOD_LINE * 10))), {"not UTF-8": 1}),
    "parquet: 300,000 rows of nothing": (parquet(lambda: dict.fromkeys(GOOD, pa.nulls(300_000))), {"no pair": 300_000}),
    "parquet: 5,000 columns": (
        parquet(lambda: {**{name: [value] for name, value in GOOD.items()}, **{f"c{i}": [i] for i in range(5000)}}),
        {"pairs": 1},
    ),
    "parquet: lists 60 deep": (parquet(lambda: one_row([_nested(60)])), {"damaged file": 1}),
    "parquet without its end": (_parquet_cut(0.5), {"damaged file": 1}),
    "parquet: a footer of 4 GB": (_parquet_footer, {"damaged file": 1}),
    "parquet: three texts of 2 MB in 200 rows": (parquet(lambda: repeated(200, 2 * MB)), {"too long": 3, "pairs": 197}),
    "parquet: three texts of 30 MB in 200 rows": (parquet(lambda: repeated(200, 30 * MB)), {"huge row": 200}),
    "parquet: messages of 1 MB": (parquet(lambda: messages(MB, 300)), {"roles": 300}),
    "parquet: a list of 100,000 texts of 1 MB": (parquet(lists_of_texts), {"huge row": 1}),
    "parquet: a list of 20 million numbers": (
        parquet(lambda: one_row(pa.ListArray.from_arrays([0, 20 * MB],  pa.array(np.zeros(20 * MB, np.int8))))),
        {"huge row": 1},
    ),
    "parquet: one row of 100 MB": (parquet(lambda: one_row(["x" * 100 * MB])), {"damaged file": 1}),
    "parquet: 6 rows of 30 MB": (
        parquet(lambda: one_row([f"{i}" + "x" * 30 * MB for i in range(6)])),
        {"pairs": 6},
    ),
    "arrow: an offset beyond the file": (offsets(0, 7, 14, 21, 28, 2**31 - 1), {"damaged file": 1}),
    "arrow: a negative offset": (offsets(0, 7, -14, 21, 28, 35), {"damaged file": 1}),
    "arrow: offsets that go back": (offsets(0, 21, 14, 7, 28, 35), {"damaged file": 1}),
    "arrow: a first offset that is negative": (offsets(-(2**30), 7, 14, 21, 28, 35), {"damaged file": 1}),
    "arrow stream: an offset beyond the file": (offsets(0, 7, 14, 21, 28, 2**30, stream=True), {"damaged file": 1}),
    "arrow: three texts of 2 MB in 200 rows": (arrow(lambda: repeated(200, 2 * MB)), {"too long": 3, "pairs": 197}),
    "arrow: views of a text of 1 MB": (arrow(views), {"same sides": 500}),
    "arrow: runs of a text of 1 MB": (arrow(ends_encoded), {"same sides": 500}),
    "arrow: a list of 100,000 texts of 1 MB": (arrow(lists_of_texts), {"huge row": 1}),
}  # fmt: skip
LOOP = "{{% for {0} in range(99999) %}}"
# name -> the template, and whether a run is refused before its first stage
TEMPLATES: dict[str, tuple[str, bool]] = {
    "three loops": ("".join(map(LOOP.format, "ijk")) + "{% endfor %}" * 3, True),
    "a loop that is too long": ("{% for i in range(10**9) %}x{% endfor %}", False),
    "ten billion characters": ("{{ 'x' * 10**10 }}", True),
    "a hundred million characters": ("{{ 'x' * 10**8 }}", True),
    "a text doubled forty times": (
        "{% set n = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        True,
    ),
    "a wide column": ("{{ 'x' | center(10**11) }}", True),
    "a wide number": ("{{ '%0100000000000d' % 1 }}", True),
    "a long list": ("{{ ([1] * 10**10) | length }}", True),
    "lists that are sorted": (LOOP.format("i") + "{% set x = range(99999) | list | sort %}{% endfor %}", True),
    "a macro that calls itself": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", False),
    "classes of Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", False),
    "the globals of a function": ("{{ raise_exception.__globals__ }}", False),
    "an import": ("{% import '/etc/passwd' as x %}{{ x }}", False),
    "a file": ("{% include '/etc/passwd' %}", False),
    "no Jinja": ("{% for m in messages %}", True),
}  # fmt: skip


def read(path: Path) -> dict[str, int]:
    """What the rows of a file come to: pairs with token ids, or rejections by kind."""
    from dpo.text.pairs import PreferencePair
    from dpo.text.plain import from_values, plain_values
    from dpo.text.rejection import Rejection
    from dpo.text.shapes import Reading
    from dpo.text.tokenize import Rules, tokenize_pair
    from dpo.text.tokenizers import CHATML, load_tokenizer
    from pipeline.data.pieces import found_in
    from pipeline.data.rows import read_rows

    tokenizer = from_values(plain_values(load_tokenizer("bytes", None, CHATML)))
    found: Counter[str] = Counter()
    for number, row in enumerate(read_rows(str(path))):
        shortened = row._replace(value=_short(row.value) if number > 2 else row.value)
        for pair in found_in(shortened, Reading({})).pairs:
            made = tokenize_pair(tokenizer, pair, Rules(64)) if isinstance(pair, PreferencePair) else pair
            found[made.kind if isinstance(made, Rejection) else "pairs"] += 1
    return dict(found)


def _short(value: Any) -> Any:
    """The first rows are encoded whole; of the others only the reading is of interest, which takes less time."""
    if isinstance(value, str):
        return value[:20]
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def rendered(template: str) -> dict[str, Any]:
    """What a chat template comes to: refused at once or not, and how a row ends."""
    from dpo.text.bounds import try_template
    from dpo.text.pairs import read_pairs
    from dpo.text.plain import from_values, plain_values
    from dpo.text.tokenize import Rules, tokenize_pair
    from dpo.text.tokenizers import TokenizerError, load_tokenizer

    loaded = load_tokenizer("bytes", None, template)
    refused = False
    try:
        try_template(loaded)
    except TokenizerError:
        refused = True
    (pair,) = read_pairs(CHAT, "best_worst", 0.0)
    found = tokenize_pair(from_values(plain_values(loaded)), pair, Rules(64))  # type: ignore[arg-type]
    return {"refused": refused, "row": type(found).__name__, "said": str(found)[:2000]}


def peak() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def main(folder: Path) -> None:
    read(packed("first.jsonl", GOOD_LINE)(folder))  # what is imported does not count
    cases: list[tuple[str, Any, Any]] = [(name, read, folder / name.replace(" ", "-")) for name in FILES]
    cases += [(name, rendered, template) for name, (template, _) in TEMPLATES.items()]
    for name, act, given in cases:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins at what is held now
        before, began = peak(), time.monotonic()
        found = act(next(given.iterdir()) if isinstance(given, Path) else given)
        print(
            json.dumps({"name": name, "found": found, "bytes": peak() - before, "seconds": time.monotonic() - began}),
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
