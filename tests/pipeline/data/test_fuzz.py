"""Good files with random damage: whatever a file holds, each row of it is used or rejected, and nothing breaks off."""

import gzip
import io
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo.text.pairs import PreferencePair, TokenizedPair, read_pairs
from dpo.text.rejection import Rejection
from dpo.text.tokenize import Rules, tokenize_pairs
from dpo.text.tokenizers import load_tokenizer
from pipeline.data.chunks import chunks
from pipeline.data.rows import read_rows
from tests.pipeline.stages.test_prepare import rejections, rows_of, tokenized

pytestmark = pytest.mark.slow

WITH_CALLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER = load_tokenizer("bytes", chat_template=WITH_CALLS)
RULES = Rules(100_000)


def runs(examples):
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# Good files


def said(role, content):
    return {"role": role, "content": content}


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
STRINGS = [{"prompt": f"Frage {i}?", "chosen": f" schön {i}", "rejected": "nein\n"} for i in range(5)]
MESSAGES = [
    {
        "prompt": [said("user", f"q{i}")],
        "chosen": [said("assistant", f"já {i}")],
        "rejected": [said("assistant", "n")],
    }
    for i in range(4)
]
SHAPES = [
    {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 2.5, 3]},
    {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": "c", "rejected": "r", "system": "s"},
    {"prompt": "Q", "response_a": "a", "response_b": "b", "winner": "model_a"},
    {**MESSAGES[0], "tools": json.dumps([CALL])},
    {
        "prompt": [said("user", "q")],
        "chosen": [{**said("assistant", None), "tool_calls": [CALL]}, said("tool", "1"), said("assistant", "c")],
        "rejected": [said("assistant", [{"type": "text", "text": "r"}])],
    },
]
ROWS = [*STRINGS[:3], *MESSAGES[:2], *SHAPES]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
JSONL = b"\n".join(LINES) + b"\n"
ARRAY = b"[" + b",\n".join(LINES) + b"]"
CSV = b"prompt,chosen,rejected\n" + "".join(f'"Frage, {i}?",schön {i},"n ""{i}""\n"\n' for i in range(6)).encode()


def parquet(rows, **options):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


def zst(content):
    return pa.compress(content, "zstd", asbytes=True)


PACKED = {
    "a.json": ARRAY,
    "a.csv": CSV,
    "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "b.jsonl.gz": gzip.compress(JSONL, 0, mtime=0),
    "a.json.gz": gzip.compress(ARRAY, 1, mtime=0),
    "a.jsonl.zst": zst(JSONL),
    "a.csv.zst": zst(CSV),
}
TABLES = {
    "strings.parquet": parquet(STRINGS, compression="none", use_dictionary=False, row_group_size=2),
    "messages.parquet": parquet(MESSAGES, row_group_size=2),
}

# Damage

NASTY = [b"\0", b"\xff", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\\ud800", b"\xc3", b"\xed\xa0\x80"]
NASTY += [b"\xef\xbb\xbf", b"null", b"1e999", b"NaN", b"-", b":", b" ", b"\t", "\u2028".encode(), b"\\u0000", b"'"]
PLACES = st.integers(0, 5000)
HITS = st.lists(st.tuples(st.integers(0, 6), PLACES, PLACES), min_size=1, max_size=4)


def hit(content, what, at, how):
    """The content with one thing changed; `at` and `how` may be any numbers."""
    at %= len(content) + 1
    if what == 0:  # a byte turned into another
        return content[:at] + bytes(byte ^ (how % 255 + 1) for byte in content[at : at + 1]) + content[at + 1 :]
    if what == 1:  # a stretch gone
        return content[:at] + content[at + how % 60 + 1 :]
    if what == 2:
        return content[:at] + NASTY[how % len(NASTY)] + content[at:]
    if what == 3:  # the end gone
        return content[:at]
    if what == 4:  # a stretch twice
        return content[: at + how % 60] + content[at:]
    if what == 5:  # a byte of any kind
        return content[:at] + bytes([how % 256]) + content[at:]
    lines = content.split(b"\n")
    here, there = at % len(lines), how % len(lines)
    lines[here], lines[there] = lines[there], lines[here]
    return b"\n".join(lines)


def damaged(content, hits):
    for what, at, how in hits:
        content = hit(content, what, at, how)
    return content


# What must hold of any file


def verdicts_of(rows):
    """What becomes of each row: its pairs as tokens, and why others are none."""
    found = [
        [Rejection(row.fault, row.kind)] if row.fault is not None else read_pairs(row.value, "all") for row in rows
    ]
    pairs = [pair for row in found for pair in row if isinstance(pair, PreferencePair)]
    tokens = iter(tokenize_pairs(TOKENIZER, pairs, RULES))
    return [[next(tokens) if isinstance(pair, PreferencePair) else pair for pair in row] for row in found]


def checked(path):
    """All rows of a file with what becomes of them; they are told apart by number and place."""
    rows = list(read_rows(str(path)))
    found = verdicts_of(rows)
    assert [row.number for row in rows] == list(range(len(rows)))
    for row, verdicts in zip(rows, found, strict=True):
        assert verdicts
        assert (row.fault is None) == (row.kind is None)
        assert row.fault is None or row.value is None
        for verdict in verdicts:
            assert isinstance(verdict, TokenizedPair) or (verdict.reason and verdict.kind)
    for before, after in pairwise(row.place for row in rows):
        assert before.get("line", 0) <= after.get("line", 0)
        assert before.get("byte", -1) < after.get("byte", 0)
        assert before.get("row", -1) < after.get("row", 0)
    return rows, found


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def in_stretches(path, size):
    return [row for part in chunks(str(path), size) for row in read_rows(str(path), part)]


@pytest.fixture(scope="module")
def good(folder):
    """The verdicts of the lines as they were."""
    rows, found = checked(written(folder, "good.jsonl", JSONL))
    assert len(rows) == len(LINES) and all(isinstance(verdict, TokenizedPair) for row in found for verdict in row)
    return dict(zip(LINES, found, strict=True))


@runs(1700)
@given(HITS, st.sampled_from([64, 300]))
def test_damaged_lines(folder, good, hits, size):
    """A line that was not hit keeps its verdict, and reading in stretches finds the same rows."""
    content = damaged(JSONL, hits)
    path = written(folder, "a.jsonl", content)
    rows, found = checked(path)
    assert in_stretches(path, size) == rows
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return  # one array now
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert len(lines) == len(rows)
    for line, row, verdicts in zip(lines, rows, found, strict=True):
        byte = row.place["byte"]
        assert content[byte:].removeprefix(b"" if byte else b"\xef\xbb\xbf").startswith(line)
        assert content[: row.place["byte"]].count(b"\n") == row.place["line"] - 1
        assert line not in good or verdicts == good[line]


@pytest.mark.parametrize("name", PACKED)
@runs(350)
@given(HITS)
def test_damaged_files_of_text(folder, name, hits):
    """Arrays, CSV and what is packed: damage is told, and reading ends."""
    path = written(folder, name, damaged(PACKED[name], hits))
    rows, _ = checked(path)
    assert in_stretches(path, 64) == rows


@pytest.mark.parametrize("name", TABLES)
@runs(250)
@given(HITS)
def test_damaged_tables(folder, name, hits):
    path = written(folder, name, damaged(TABLES[name], hits))
    rows, _ = checked(path)
    if all(row.fault is None for row in rows):  # damage ends a stretch, not the stretches behind it
        assert in_stretches(path, 1) == rows


# Other values

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["", " ", "\0", "user", "assistant", "system", "tool", "Human: a", "tie", "b", "[]", "[1]", 10**400]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ["prompt", "chosen", "rejected", "system", "tools", "tool_calls", "role", "content", "from", "value", "winner"]
KEYS += ["responses", "completions", "scores", "ranks", "conversations", "chosen_messages", "rejected_messages", "x"]
CHANGES = st.lists(st.tuples(PLACES, st.sampled_from(["value", "key", "gone", "new"]), VALUES), min_size=1, max_size=3)


def holders(value):
    """Every object and list in a value, itself first."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, (dict, list)) and value else []) + [h for v in inner for h in holders(v)]


def changed(row, changes):
    """A row with values, keys and elements replaced, dropped and added anywhere in it."""
    row = json.loads(json.dumps(row))
    for at, what, value in changes:
        if not (places := holders(row)):
            return row
        place = places[at % len(places)]
        names = list(place) if isinstance(place, dict) else range(len(place))
        name = names[at // 7 % len(names)]
        if what == "new" and isinstance(place, dict):
            place[KEYS[at % len(KEYS)]] = value
        elif what == "key" and isinstance(place, dict):
            place[KEYS[at % len(KEYS)]] = place.pop(name)
        elif what == "gone":
            del place[name]
        else:
            place[name] = value
    return row


@runs(700)
@given(st.integers(0, len(ROWS) - 1), CHANGES, st.booleans())
def test_other_values(folder, good, number, changes, escaped):
    """A row of any values between two good ones, which stay good."""
    nasty = json.dumps(changed(ROWS[number], changes), ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    _, (before, _, after) = checked(written(folder, "values.jsonl", b"\n".join([LINES[0], nasty, LINES[-1]])))
    assert (before, after) == (good[LINES[0]], good[LINES[-1]])


# What a run counts


@runs(100)
@given(HITS, st.sampled_from([64, 100_000]))
def test_counts_add_up(folder, hits, size):
    """Every pair is read, and then used, held out or rejected; rejections are counted by kind and all written down."""
    path = written(folder, "counts.jsonl", damaged(JSONL, hits))
    _, found = checked(path)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out, options = Path(name), {"max_length": RULES.max_length, "tokenizer": TOKENIZER, "pairing": ("all", 0.0)}
        counts = tokenized(out, [path], None, eval_fraction=0.3, size=size, **options)
        used = [len(rows_of(out, split)) for split in ("train", "eval")]
        assert counts["read"] == sum(map(len, found)) == counts["train"] + counts["eval"] + counts["rejected"]
        assert used == [counts["train"], counts["eval"]]
        assert len(rejections(out)) == counts["rejected"] == sum(counts["reasons"].values())
        assert sum(used) == sum(isinstance(verdict, TokenizedPair) for row in found for verdict in row)
