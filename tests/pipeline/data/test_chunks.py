"""A file cut into chunks: read one after the other they are the file, wherever it is cut."""

import gzip
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import chunks as chunks_
from pipeline.data import rows as rows_
from pipeline.data.chunks import Chunk, chunks
from pipeline.data.rows import read_rows

MARK = b"\xef\xbb\xbf"
VALUES = [{"n": i, "text": "é" * (i % 7)} for i in range(40)]
LINES = [json.dumps(value, ensure_ascii=False).encode() for value in VALUES]


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return str(folder / name)


def check(path, size):
    """The chunks, after a look at how they cover the file and whether their rows are those of the whole."""
    found = chunks(path, size)
    assert [chunk.first for chunk in found[1:]] == [chunk.end for chunk in found[:-1]]
    assert (found[0].first, found[0].line, found[0].row, found[-1].end) == (0, 0, 0, None)
    apart = [list(read_rows(path, chunk)) for chunk in found]
    whole = list(read_rows(path))
    assert [row for rows in apart for row in rows] == whole
    assert [row.number for row in whole] == list(range(len(whole)))
    assert [chunk.row for chunk in found] == [sum(map(len, apart[:n])) for n in range(len(found))]
    return found


# Lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\n \r\n\n"])
@pytest.mark.parametrize("mark", [b"", MARK, b"\n", MARK + b"\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\n\n  "])
def test_a_file_of_lines(tmp_path, name, end, mark, last):
    """With blank lines between the rows, a byte order mark before them, and with or without an end."""
    path = write(tmp_path, name, mark + end.join(LINES) + last)
    for size in (1, 20, 100, 333):
        found = check(path, size)
        assert len(found) > 2
    assert [row.value for row in read_rows(path)] == VALUES


def test_chunks_by_hand(tmp_path):
    """Lines of 8, 1, 8, 8 and 7 bytes: a chunk ends where 9 bytes are reached."""
    path = write(tmp_path, "a.jsonl", b'{"a":1}\n\n{"a":2}\n{"a":3}\n{"a":4}')
    assert chunks(path, 9) == [Chunk(0, 9, 0, 0), Chunk(9, 25, 2, 1), Chunk(25, None, 4, 3)]
    assert chunks(path, 8) == [Chunk(0, 8, 0, 0), Chunk(8, 17, 1, 1), Chunk(17, 25, 3, 2), Chunk(25, None, 4, 3)]
    assert [row.place for row in read_rows(path, Chunk(9, 25, 2, 1))] == [
        {"line": 3, "byte": 9},
        {"line": 4, "byte": 17},
    ]


def test_a_chunk_is_as_large_as_was_asked_for(tmp_path):
    path = write(tmp_path, "a.jsonl", b"\n".join(LINES))
    found = check(path, 100)
    sizes = [chunk.end - chunk.first for chunk in found[:-1]]
    assert all(100 <= size < 100 + max(map(len, LINES)) + 1 for size in sizes)


def test_a_small_file_is_one_chunk(tmp_path):
    content = b"\n".join(LINES)
    path = write(tmp_path, "a.jsonl", content)
    assert check(path, len(content)) == [Chunk()]
    assert len(check(path, len(content) - len(LINES[-1]) - 1)) == 2
    assert chunks(path) == [Chunk()]


@pytest.mark.parametrize("content", [b"", b"\n\n\n\n\n\n", MARK, b"  \n" * 9])
def test_a_file_without_rows(tmp_path, content):
    path = write(tmp_path, "a.jsonl", content)
    check(path, 2)
    assert list(read_rows(path)) == []


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b'{"a": 1}', b'{"b": "\xc3\xa9"}', b"", b"  ", b"\r", b"broken", b'{"a": "\xff"}', MARK, b"[1]"]
        ),
        max_size=20,
    ),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 50),
)
@example([b'{"a": 1}', MARK + b'{"a": 1}'], b"\n", True, 1)
@example([MARK, b'{"a": 1}', b'{"a": 1}'], b"\n", False, 1)
def test_any_lines(lines, end, marked, size):
    """Broken ones too, and byte order marks where none belongs."""
    with tempfile.TemporaryDirectory() as folder:
        content = MARK * marked + end.join(lines)
        check(write(Path(folder), "a.jsonl", content), size)


def test_a_line_longer_than_a_chunk(tmp_path):
    long = json.dumps({"text": "x" * 5000}).encode()
    path = write(tmp_path, "a.jsonl", b"\n".join([*LINES[:3], long, *LINES[3:6], long, long]))
    found = check(path, 200)
    assert len(found) == 3  # after each long line
    assert sum(row.value == {"text": "x" * 5000} for row in read_rows(path)) == 3


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_longer_than_any_row_may_be(tmp_path, monkeypatch, extra, end):
    """It costs only itself, and is counted as the one row that it is, also where the last piece read is its end."""
    for module in (chunks_, rows_):
        monkeypatch.setattr(module, "LONGEST", 1000)
    long = b'{"a":"' + b"x" * (1000 + extra - 8) + b'"}'
    assert len(long) == 1000 + extra
    path = write(tmp_path, "a.jsonl", b"\n".join([*LINES[:3], long, *LINES[3:9], long]) + end)
    for size in (1, 100, 1500, 3000):
        check(path, size)
    blank = write(tmp_path, "b.jsonl", b"\n".join([LINES[0], b" " * (1000 + extra), *LINES[1:4]]))
    check(blank, 1)
    rows = list(read_rows(path))
    assert len(rows) == 11
    assert [row.value for row in rows if row.number not in (3, 10)] == VALUES[:9]
    assert {row.kind for row in (rows[3], rows[10])} == ({"huge row"} if extra > 0 else {None})


# Tables


@pytest.mark.parametrize("group", [1, 7, 40])
def test_row_groups(tmp_path, group):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(VALUES), path, row_group_size=group)
    found = check(str(path), 1)
    assert [chunk.row for chunk in found] == list(range(0, 40, group))
    assert [row.value for row in read_rows(str(path))] == VALUES
    assert check(str(path), 1 << 20) == [Chunk()]


def test_row_groups_are_put_together_up_to_the_size(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(4000)}), path, row_group_size=100, use_dictionary=False, compression="none")
    with pq.ParquetFile(path) as file:
        size = 3 * file.metadata.row_group(0).total_byte_size
    assert [chunk.first for chunk in check(str(path), size)] == list(range(0, 40, 3))


def test_a_table_without_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist(VALUES).slice(0, 0), tmp_path / "a.parquet")
    check(str(tmp_path / "a.parquet"), 1)
    assert list(read_rows(str(tmp_path / "a.parquet"))) == []


def test_a_table_that_is_none_is_one_chunk(tmp_path):
    path = write(tmp_path, "a.parquet", b"PAR1 no table PAR1")
    assert check(path, 1) == [Chunk()]


# What is not cut


def arrow(folder):
    table = pa.Table.from_pylist(VALUES)
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=3)
    return str(folder / "a.arrow")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(VALUES).encode()),
        ("a.jsonl", MARK + b"\n " + json.dumps(VALUES, indent=1).encode()),
        ("a.jsonl.gz", gzip.compress(b"\n".join(LINES))),
        ("a.jsonl.zst", pa.compress(b"\n".join(LINES), "zstd", asbytes=True)),
        ("a.json.gz", gzip.compress(json.dumps(VALUES).encode())),
        ("a.csv", b"n,text\n" + b"1,a\n" * 40),
        ("a.arrow", None),
    ],
)
def test_other_kinds_are_one_chunk(tmp_path, name, content):
    path = arrow(tmp_path) if content is None else write(tmp_path, name, content)
    assert check(path, 10) == [Chunk()]
    assert len(list(read_rows(path))) == 40


def test_blanks_before_an_array(tmp_path):
    path = write(tmp_path, "a.json", b" \n" * 1000 + json.dumps(VALUES, indent=1).encode())
    assert [row.value for row in read_rows(path)] == VALUES
    assert check(path, 10) == [Chunk()]


def test_many_blanks_before_lines(tmp_path):
    path = write(tmp_path, "a.jsonl", b" \n" * 5000 + b"\n".join(LINES))
    assert [row.place["line"] for row in read_rows(path)] == list(range(5001, 5041))
    check(path, 100)
