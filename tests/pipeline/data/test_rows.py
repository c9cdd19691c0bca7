import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.files import KINDS, list_files
from pipeline.data.row_bytes import row_bytes
from pipeline.data.rows import read_rows
from pipeline.errors import InputError
from tests.places import DATA

VALUES = [{"n": i, "text": f"Zeile {i} é"} for i in range(4)]
LINES = [json.dumps(value, ensure_ascii=False).encode() for value in VALUES]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(packed(name, content))
    return path


def packed(name, content):
    if name.endswith(".zst"):
        return pa.compress(content, "zstd", asbytes=True)
    return gzip.compress(content) if name.endswith(".gz") else content


def read(folder, name, content):
    """Rows of a file of this content, which must be numbered 0, 1, 2, ..."""
    rows = list(read_rows(str(write(folder, name, content))))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert all((row.fault is None) or (row.value is None) for row in rows)
    return rows


def values(rows):
    return [row.value for row in rows]


def places(rows):
    return [row.place.get("line", row.place.get("row")) for row in rows]


def faults(rows):
    return [row.fault for row in rows if row.fault is not None]


# The formats


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_one_object_a_line(tmp_path, name, end, mark):
    rows = read(tmp_path, name, mark + end.join(LINES))
    assert values(rows) == VALUES
    assert [row.place["line"] for row in rows] == [1, 2, 3, 4]
    content = mark + end.join(LINES)
    assert [content[row.place["byte"] :].removeprefix(mark)[:9] for row in rows] == [line[:9] for line in LINES]
    assert faults(rows) == []


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.json.zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n \r\n"])
def test_a_json_array(tmp_path, name, mark):
    for indent in (None, 2):
        rows = read(tmp_path, name, mark + json.dumps(VALUES, indent=indent).encode())
        assert values(rows) == VALUES
        assert faults(rows) == []


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(VALUES), tmp_path / "a.parquet", row_group_size=3)
    rows = list(read_rows(str(tmp_path / "a.parquet")))
    assert values(rows) == VALUES
    assert [row.place for row in rows] == [{"row": i} for i in (1, 2, 3, 4)]
    assert [row.number for row in rows] == [0, 1, 2, 3]
    assert rows[0].excerpt == "{'n': 0, 'text': 'Zeile 0 é'}"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"[]", b"[\n]\n"])
def test_a_file_without_rows(tmp_path, content):
    assert read(tmp_path, "a.jsonl", content) == []
    assert read(tmp_path, "a.jsonl.gz", content) == []


# Where a row stood


def test_blank_lines_are_no_rows_but_are_counted(tmp_path):
    rows = read(tmp_path, "a.jsonl", b"\n" + LINES[0] + b"\n  \n\r\n" + LINES[1] + b"\n\n")
    assert values(rows) == VALUES[:2]
    assert places(rows) == [2, 5]


def test_the_line_of_an_element_is_where_it_begins(tmp_path):
    """Elements over one, four and two lines, with a blank line between them, and two on one line."""
    content = b'\n[ {"a": 1},\n\n{\n"a":\n2\n}\n,\n{"a":\n3}, {"a": 4}\n,{"a": 5}]'
    rows = read(tmp_path, "a.json", content)
    assert values(rows) == [{"a": i} for i in (1, 2, 3, 4, 5)]
    assert places(rows) == [2, 4, 9, 10, 11]


def test_a_line_break_inside_a_string_does_not_end_the_row(tmp_path):
    """U+2028 and U+0085 end a line for str.splitlines; JSON may hold them as they are."""
    text = "a\u2028b\u0085c\x0bd"
    content = json.dumps({"t": text}, ensure_ascii=False).encode() + b"\n" + LINES[0]
    rows = read(tmp_path, "a.jsonl", content)
    assert values(rows) == [{"t": text}, VALUES[0]]
    assert places(rows) == [1, 2]


def test_an_excerpt_is_the_beginning_of_the_row(tmp_path):
    long = json.dumps({"t": "é" * 500}, ensure_ascii=False).encode()
    for name, content in (("a.jsonl", long), ("a.json", b"[" + long + b"]")):
        (row,) = read(tmp_path, name, content)
        assert row.excerpt.startswith('{"t": "éé')
        assert len(row.excerpt) <= 120


# What is broken


def test_a_broken_line_costs_only_itself(tmp_path):
    rows = read(tmp_path, "a.jsonl", LINES[0] + b'\n{"a": \n' + LINES[1] + b"\nnothing\n" + LINES[2])
    assert [row.value for row in rows if row.fault is None] == VALUES[:3]
    assert [(p, row.fault) for p, row in zip(places(rows), rows, strict=True) if row.fault] == [
        (2, "not valid JSON: Expecting value at character 7"),
        (4, "not valid JSON: Expecting value at character 0"),
    ]
    assert [row.excerpt for row in rows if row.fault] == ['{"a":', "nothing"]


def test_a_line_that_is_not_utf8(tmp_path):
    rows = read(tmp_path, "a.jsonl", LINES[0] + b'\n{"a": "\xe9"}\n' + LINES[1])
    assert faults(rows) == ["not UTF-8: invalid continuation byte at byte 7 of the row"]
    assert values(rows) == [VALUES[0], None, VALUES[1]]
    assert rows[1].excerpt == '{"a": "\ufffd"}'


def test_an_array_that_is_not_utf8(tmp_path):
    rows = read(tmp_path, "a.json", b'[{"a": 1}, {"a": "\xe9"}, {"a": 2}]')
    assert values(rows) == [{"a": 1}, None, {"a": 2}]
    assert faults(rows) == ["not UTF-8"]
    assert rows[1].excerpt.startswith('{"a": "?"}')


@pytest.mark.parametrize("tail", [b'{"a": ', b"", b"nothing]"])
def test_an_array_is_read_up_to_where_it_breaks(tmp_path, tail):
    rows = read(tmp_path, "a.json", b"[" + LINES[0] + b",\n" + LINES[1] + b",\n" + tail)
    assert values(rows) == [*VALUES[:2], None]
    assert places(rows) == [1, 2, 3]
    assert [fault[:33] for fault in faults(rows)] == ["not valid JSON from here on: Expe"]


def test_what_follows_an_array_is_not_dropped_in_silence(tmp_path):
    """A file of lines whose first one happens to be an array."""
    rows = read(tmp_path, "a.jsonl", b"[1]\n" + LINES[0] + b"\n")
    assert values(rows) == [1, None]
    assert faults(rows) == ["the array ends here, but more text follows"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number with too many digits"),
        (b'{"a": "x \\ud800 y"}', r"it contains '\ud800', half of a surrogate pair"),
        (b'{"a": [{"\\uDC00": 1}]}', r"it contains '\udc00', half of a surrogate pair"),
    ],
)
def test_json_that_python_does_not_take(tmp_path, row, fault):
    rows = read(tmp_path, "a.jsonl", row + b"\n" + LINES[0])
    assert values(rows) == [None, VALUES[0]]
    assert faults(rows)[0].endswith(fault)
    in_array = read(tmp_path, "a.json", b"[" + LINES[0] + b",\n" + row + b"]")
    assert values(in_array) == [VALUES[0], None]
    assert faults(in_array)[0].endswith(fault)


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path):
    assert values(read(tmp_path, "a.jsonl", b'{"a": "\\ud83d\\ude00"}')) == [{"a": "\U0001f600"}]


def test_rows_before_the_damage_of_a_truncated_gzip_are_read(tmp_path):
    """Text that does not compress, cut in the middle: whole rows, then one fault."""
    lines = [json.dumps({"n": i, "noise": hex(hash((i, 7)) ** 9)}).encode() for i in range(2000)]
    whole = gzip.compress(b"\n".join(lines))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    rows = list(read_rows(str(path)))
    good = [row for row in rows if row.fault is None]
    assert len(good) > 200
    assert values(good) == [json.loads(line) for line in lines[: len(good)]]
    assert [(row.place["line"], row.fault[:36]) for row in rows[len(good) :]] == [
        (len(good) + 1, "the file is damaged from here on: Co")
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("content", [b"not gzip at all", gzip.compress(b"[1, 2]", mtime=0)[:-9]])
def test_a_gzip_that_is_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (row,) = read_rows(str(tmp_path / name))
    assert row.fault.startswith("the file is damaged")
    assert row.value is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"a": 1}\n'])
def test_a_parquet_file_that_is_none(tmp_path, content):
    for name, kind in (("a.parquet", "a Parquet"), ("a.arrow", "an Arrow")):
        (row,) = read(tmp_path, name, content)
        assert row.fault.startswith(f"not {kind} file: ")
        assert row.place == {"row": 1}


CSV = 'prompt,chosen,rejected\n"What, is it?",yes,"no\nnever"\n\nq,"say ""a""",é\n'
CSV_ROWS = [
    {"prompt": "What, is it?", "chosen": "yes", "rejected": "no\nnever"},
    {"prompt": "q", "chosen": 'say "a"', "rejected": "é"},
]


@pytest.mark.parametrize("index", [1, 2, -1])
def test_a_value_that_its_dictionary_does_not_have_is_damage(index):
    """As in a Parquet file of which one byte of a page is another, whose pages have no checksums."""
    texts = pa.array(["assistant"])
    array = pa.DictionaryArray.from_arrays(pa.array([0, index], pa.int32()), texts, safe=False)
    with pytest.raises(pa.ArrowInvalid, match="among the 1 of a dictionary"):
        row_bytes(pa.record_batch({"role": array}))
    whole = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int32()), texts)
    assert row_bytes(pa.record_batch({"role": whole})).tolist() == [len("assistant"), 0]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_csv_file(tmp_path, name, mark):
    """Cells may hold commas, quotes and line ends; places are lines of the file."""
    rows = read(tmp_path, name, mark + CSV.encode())
    assert values(rows) == CSV_ROWS
    assert places(rows) == [2, 5]


def test_bad_rows_of_a_csv_file_end_nothing(tmp_path):
    long = "x" * 200_000
    content = CSV.encode() + b"a,b\n\xff\xfe,b,c\nd,e,f,g\n" + f"{long},h,i\n".encode()
    rows = read(tmp_path, "a.csv", content)
    assert values(rows) == [*CSV_ROWS, None, None, None, {"prompt": long, "chosen": "h", "rejected": "i"}]
    assert faults(rows) == ["2 cells under 3 columns", "not UTF-8", "4 cells under 3 columns"]
    assert places(rows) == [2, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("content", [b"", b"a,b,c\n"])
def test_a_csv_file_without_rows(tmp_path, content):
    assert read(tmp_path, "a.csv", content) == []


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file(tmp_path, writer):
    path = tmp_path / "a.arrow"
    table = pa.Table.from_pylist(VALUES)
    with writer(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=3)
    rows = list(read_rows(str(path)))
    assert values(rows) == VALUES
    assert places(rows) == [1, 2, 3, 4]


def test_an_arrow_file_with_fields_that_never_have_a_value(tmp_path):
    rows = [{"a": [{"text": "x", "note": None}, {"text": "y", "note": None}]}, {"a": []}, {"a": None}]
    path, table = tmp_path / "a.arrow", pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as out:
        out.write_table(table)
    assert values(list(read_rows(str(path)))) == rows


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.csv.gz"])
def test_a_packed_file_that_is_cut(tmp_path, name):
    content = b"n\n" + b"".join(b"%d\n" % i for i in range(100_000))
    path = tmp_path / name
    path.write_bytes(packed(name, content)[:-1000])
    *_, last = read_rows(str(path))
    assert last.fault.startswith("the file is damaged from here on: ")


def test_a_parquet_file_that_is_damaged_in_the_middle(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(5000)}), path, row_group_size=2000, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[20_000:20_200] = bytes(200)
    path.write_bytes(content)
    *rows, last = read_rows(str(path))
    assert last.fault is None or last.fault.startswith("the file is damaged from here on: ")
    assert len(rows) >= 2000


def test_a_file_that_cannot_be_had_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_rows(str(tmp_path / "none.parquet")))


# Which files


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "b.parquet", "a.csv.zst", "a.arrow"])
def test_files_that_are_read(tmp_path, name):
    (tmp_path / name).touch()
    assert list_files(str(tmp_path / name), "data.train") == [str(tmp_path / name)]


def test_a_folder_names_what_lies_in_it_and_below(tmp_path):
    for name in ("b.jsonl", "a/c.parquet", "a/d.csv.gz", "notes.txt", ".cache/e.jsonl", "_SUCCESS.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(str(tmp_path), "data.train") == [
        str(tmp_path / n) for n in ("a/c.parquet", "a/d.csv.gz", "b.jsonl")
    ]


def test_a_pattern_names_what_it_matches(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.json", "sub/d.jsonl", "[x].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(str(tmp_path / "?.jsonl"), "data.train") == [str(tmp_path / n) for n in ("a.jsonl", "b.jsonl")]
    assert list_files(str(tmp_path / "**" / "d.jsonl"), "data.train") == [str(tmp_path / "sub" / "d.jsonl")]
    assert list_files(str(tmp_path / "[x].jsonl"), "data.train") == [
        str(tmp_path / "[x].jsonl")
    ]  # there is such a file


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none.jsonl", "does not exist. In {folder} there are: a.parquet.gz, a.txt, folder."),
        ("folder", f"the folder holds no {KINDS.replace(' and ', ' or ')}."),
        ("*.jsonl", "no file matches this pattern."),
        ("a.txt", f"only {KINDS} are supported."),
        ("a.parquet.gz", f"only {KINDS} are supported."),
    ],
)
def test_files_that_are_not_read(tmp_path, name, what):
    (tmp_path / "folder").mkdir()
    for there in ("a.txt", "a.parquet.gz", "folder/notes.txt", "folder/.hidden.jsonl"):
        (tmp_path / there).touch()
    with pytest.raises(InputError) as error:
        list_files(str(tmp_path / name), "data.eval")
    assert str(error.value) == f"data.eval = {str(tmp_path / name)!r}: {what.replace('{folder}', str(tmp_path))}"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tulu_human_pairs.jsonl.gz", 497),
        ("qa_feedback.jsonl.gz", 1330),
        ("sharegpt_dpo_en.json", 269),
        ("messages_dpo_demo.jsonl", 10),
    ],
)
def test_real_files_have_as_many_rows_as_they_say(name, count):
    if not (DATA / name).is_file():
        pytest.skip(f"no {name} in {DATA}")
    rows = list(read_rows(str(DATA / name)))
    assert len(rows) == count
    assert faults(rows) == []
    assert all(isinstance(row.value, dict) for row in rows)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("offset", [10**6, 2**31 - 1, -1, -(10**6)])
def test_an_offset_that_leads_out_of_an_arrow_file_is_damage(tmp_path, offset, nested):
    """One in the middle; Arrow would follow it, and the process would end."""
    texts = [f"prompt {i}" for i in range(40)]
    column = pa.array([[{"role": text}] for text in texts] if nested else texts)
    path, table = tmp_path / "x.arrow", pa.table({"prompt": column})
    with pa.ipc.new_file(str(path), table.schema) as out:
        out.write_table(table)
    offsets = np.cumsum([0, *map(len, texts)]).astype("<i4")
    content = path.read_bytes()
    at = content.index(offsets.tobytes())
    offsets[4] = offset
    path.write_bytes(content[:at] + offsets.tobytes() + content[at + offsets.nbytes :])
    (row,) = read_rows(str(path))
    assert row.kind == "damaged file"
