"""Pairs that stand in the data again, or turned round as well: what is counted, what is dropped, what is said of it."""

import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo.text.pairs import TokenizedPair
from dpo.text.tokenizers import load_tokenizer
from pipeline.data import pieces
from pipeline.data.repeats import find_repeats
from pipeline.store.tokens import place_of, row_id, token_row
from tests.pipeline.files import jsonl, parts_of
from tests.pipeline.stages.test_prepare import rejections, rows_of, tokenized
from tests.places import DATA

BYTES = load_tokenizer("bytes")
KINDS = ("duplicate", "contradiction")


def expected(pairs):
    """Of pairs {id: (prompt, chosen, rejected)} in file order: (row, row it repeats), (row, row that contradicts it).

    Every row is compared with every other one.
    """
    duplicates, contradictions = [], []
    for row, pair in pairs.items():
        earlier = [other for other, theirs in pairs.items() if other < row and theirs == pair]
        opposed = [other for other, (prompt, chosen, rejected) in pairs.items() if (prompt, rejected, chosen) == pair]
        duplicates += [(row, min(earlier))] if earlier else []
        contradictions += [(row, min(opposed))] if opposed else []
    return duplicates, contradictions


def found(parts):
    repeats = find_repeats(parts)
    assert all(column.dtype == "int64" for column in repeats)
    return tuple(
        [(int(row), int(other)) for row, other in zip(*columns, strict=True)] for columns in (repeats[:2], repeats[2:])
    )


def token_pair(prompt, chosen, rejected):
    return TokenizedPair(prompt, chosen, rejected, [True] * len(chosen), [True] * len(rejected), False, 0)


# Few prompts and answers, so that most pairs meet others; the two sides differ, as in all that is read.
SIDES = st.sampled_from("abc")
PAIRS = st.tuples(st.sampled_from("pq"), SIDES, SIDES).filter(lambda pair: pair[1] != pair[2])


# What is counted


@settings(max_examples=60, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=24), st.data())
def test_repeats_are_those_that_a_comparison_of_all_rows_finds(pairs, data):
    """In parts of any size, whose rows may stand in any order; row ids of several files and copies."""
    places = st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 2))
    drawn = data.draw(st.lists(places, min_size=len(pairs), max_size=len(pairs), unique=True))
    by_id = dict(sorted(zip((row_id(*place) for place in drawn), pairs, strict=True)))
    rows = [token_row(row, token_pair(*([ord(text)] for text in pair))) for row, pair in by_id.items()]
    rows = data.draw(st.permutations(rows))
    size = data.draw(st.integers(1, len(rows)))
    sizes = [len(rows[at : at + size]) for at in range(0, len(rows), size)]
    with tempfile.TemporaryDirectory() as folder:
        assert found(parts_of(Path(folder) / "parts", rows, sizes)) == expected(by_id)


def test_no_parts_hold_no_repeats():
    assert found([]) == ([], [])


def test_the_same_answers_to_another_prompt_are_no_repeat(tmp_path):
    """Nor is a pair whose prompt and answer are cut elsewhere, or whose mask differs."""
    pairs = [
        token_pair([1, 2], [3], [4]),
        token_pair([1], [2, 3], [2, 4]),
        token_pair([2, 1], [3], [4]),
        token_pair([1, 2], [3], [5]),
        token_pair([1, 2], [6, 3], [4])._replace(chosen_mask=[False, True]),
        token_pair([1, 2], [6, 3], [4]),
    ]
    rows = [token_row(number, pair) for number, pair in enumerate(pairs)]
    assert found(parts_of(tmp_path / "parts", rows, [6])) == ([], [])


# What is dropped


LINES = st.lists(st.one_of(PAIRS, st.none()), min_size=1, max_size=14)  # none: a blank line


@settings(max_examples=30, deadline=None)
@given(LINES, LINES, st.sets(st.sampled_from(KINDS)), st.sampled_from([None, 60]))
@example([("p", "a", "b"), None, ("p", "b", "a")], [("p", "a", "b"), ("q", "a", "b")], set(KINDS), None)
@example([("p", "a", "b"), ("p", "a", "b")], [None], {"duplicate"}, 60)
def test_what_is_dropped_is_told_with_its_place(one, two, drop, size):
    """Of two files, whole or in chunks: the rows left, what the counts say, and an entry for each row that went."""
    with tempfile.TemporaryDirectory() as name:
        check_drop(Path(name), {"one.jsonl": one, "two.jsonl": two}, drop, size)


def check_drop(folder, files, drop, size):
    pairs, places, paths = {}, {}, []
    for number, (name, lines) in enumerate(files.items()):
        path, row, written = folder / name, 0, b""
        for at, pair in enumerate(lines):
            if pair is not None:
                identity = row_id(number, row)
                pairs[identity] = pair
                places[identity] = {"file": str(path), "line": at + 1, "byte": len(written)}
                row += 1
            fields = None if pair is None else dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))
            written += b"\n" if pair is None else json.dumps(fields).encode() + b"\n"
        path.write_bytes(written)
        paths.append(path)
    counts = tokenized(folder / "out", paths, tokenizer=BYTES, size=size, drop=drop)
    duplicates, contradictions = expected(pairs)
    assert (counts["duplicates"], counts["contradictions"]) == (len(duplicates), len(contradictions))

    gone = {row: ("duplicate", other) for row, other in duplicates if "duplicate" in drop}
    gone |= {row: ("contradiction", other) for row, other in contradictions if "contradiction" in drop}
    rows = rows_of(folder / "out", "train")
    assert [row["row_id"] for row in rows] == [row for row in pairs if row not in gone]
    assert all(
        tuple(text_of(row, name) for name in ("prompt", "chosen", "rejected")) == pairs[row["row_id"]] for row in rows
    )
    assert counts["read"] == len(pairs) == counts["train"] + counts["rejected"]
    assert counts["train"] == len(rows)
    assert counts["tokens"] == 6 * len(rows)  # prompt twice, each answer with its end
    assert counts["reasons"] == dict(Counter(kind for kind, _ in gone.values()))

    entries = {(entry["file"], entry["line"]): entry for entry in rejections(folder / "out")}
    assert len(entries) == len(gone)
    for row, (kind, other) in gone.items():
        entry = entries[places[row]["file"], places[row]["line"]]
        said = {"duplicate": "the same pair as", "contradiction": "chosen and rejected are swapped in"}
        reason = f"{said[kind]} {Path(places[other]['file']).name} line {places[other]['line']}"
        assert entry == {**places[row], "kind": kind, "reason": reason, "excerpt": ""}


def text_of(row, name):
    return BYTES.decode(row[f"{name}_ids"], skip_special_tokens=True)


def rows_like(*pairs):
    return [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]


def test_a_part_that_becomes_empty_vanishes(tmp_path, monkeypatch):
    """Parts of two rows: the first stays as it is, the second loses all, the third one of two."""
    monkeypatch.setattr(pieces, "PART_ROWS", 2)
    monkeypatch.setattr(pieces, "BATCH_PAIRS", 2)
    a, b, c = ("p", "a", "b"), ("q", "a", "b"), ("p", "a", "c")
    path = jsonl(tmp_path / "a.jsonl", rows_like(a, b, a, b, c, a))
    tokenized(tmp_path / "kept", [path])
    before = {part.name: part.read_bytes() for part in (tmp_path / "kept" / "train").iterdir()}
    assert sorted(before) == [f"000000-000000-{part:06}.parquet" for part in range(3)]
    counts = tokenized(tmp_path / "out", [path], drop=("duplicate",))
    after = {part.name: part.read_bytes() for part in (tmp_path / "out" / "train").iterdir()}
    assert sorted(after) == ["000000-000000-000000.parquet", "000000-000000-000002.parquet"]
    assert after["000000-000000-000000.parquet"] == before["000000-000000-000000.parquet"]
    assert [row["row_id"] for row in rows_of(tmp_path / "out", "train")] == [row_id(0, row) for row in (0, 1, 4)]
    assert (counts["train"], counts["rejected"], counts["duplicates"]) == (3, 3, 3)


def test_a_split_of_which_nothing_is_left(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows_like(("p", "a", "b"), ("p", "b", "a")))
    counts = tokenized(tmp_path / "out", [path], drop=("contradiction",))
    assert (counts["train"], counts["tokens"], counts["rejected"]) == (0, 0, 2)
    assert list((tmp_path / "out" / "train").iterdir()) == []


def test_the_counts_of_a_pair_go_with_it(tmp_path):
    """One that is cut, and one whose prompt and answer were encoded apart, are not counted once they are dropped."""
    long = ("p", "a" * 50, "b")
    path = jsonl(tmp_path / "a.jsonl", rows_like(long, long, ("q", "a", "b")))
    kept = tokenized(tmp_path / "kept", [path], max_length=11)
    dropped = tokenized(tmp_path / "dropped", [path], max_length=11, drop=("duplicate",))
    assert (kept["truncated"], kept["cut"]) == (2, 2 * 41)  # 50 letters and the end, of which 10 are left
    assert (dropped["truncated"], dropped["cut"]) == (1, 41)
    assert dropped["duplicates"] == kept["duplicates"] == 1


def test_pairs_that_become_the_same_when_they_are_cut_are_repeats(tmp_path):
    """A pair is what the model sees of it."""
    path = jsonl(tmp_path / "a.jsonl", rows_like(("p", "aaaaaaaa1", "b"), ("p", "aaaaaaaa2", "b")))
    assert tokenized(tmp_path / "long", [path], max_length=64)["duplicates"] == 0
    assert tokenized(tmp_path / "short", [path], max_length=8)["duplicates"] == 1


def test_each_split_is_looked_at_by_itself(tmp_path):
    """A held-out pair that is also trained on is no repeat of it: both stay where they were put."""
    rows = rows_like(*[(f"Question {number}", "a", "b") for number in range(40)] * 2)
    path = jsonl(tmp_path / "a.jsonl", rows)
    counts = tokenized(tmp_path / "out", [path], None, eval_fraction=0.5, drop=KINDS)
    assert counts["duplicates"] == counts["rejected"] == 40
    assert counts["train"] + counts["eval"] == 40 and min(counts["train"], counts["eval"]) > 0
    names = sorted(part.name for part in (tmp_path / "out" / "rejected").iterdir())
    assert names == ["repeats-eval.jsonl", "repeats-train.jsonl"]
    assert {entry["line"] for entry in rejections(tmp_path / "out")} == set(range(41, 81))


def test_a_dropped_row_of_a_table_is_named_by_its_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows_like(("p", "a", "b"), ("p", "a", "b"))), encoding="utf-8")
    tokenized(tmp_path / "array", [path], drop=("duplicate",))
    (entry,) = rejections(tmp_path / "array")
    assert (entry["line"], entry["byte"]) == (1, path.read_text(encoding="utf-8").index('{"prompt"', 5))

    table = tmp_path / "b.parquet"
    pq.write_table(pa.Table.from_pylist(rows_like(("p", "a", "b"), ("q", "a", "b"), ("p", "a", "b"))), table)
    tokenized(tmp_path / "table", [table], drop=("duplicate",))
    (entry,) = rejections(tmp_path / "table")
    reason = "the same pair as b.parquet row 1"
    assert entry == {"file": str(table), "row": 3, "kind": "duplicate", "reason": reason, "excerpt": ""}


# Several pairs of one row


def ranked(answers, scores):
    return {"prompt": "p", "responses": answers, "scores": scores}


def test_pairs_of_one_row_that_repeat_each_other(tmp_path):
    """Two of its answers are the same text with the same score: a over b stands there twice."""
    path = jsonl(tmp_path / "a.jsonl", [ranked(["a", "a", "b"], [2, 2, 1])])
    kept = tokenized(tmp_path / "kept", [path], pairing=("all", 0.0))
    assert (kept["train"], kept["duplicates"], kept["contradictions"]) == (2, 1, 0)
    tokenized(tmp_path / "out", [path], pairing=("all", 0.0), drop=("duplicate",))
    assert [row["row_id"] for row in rows_of(tmp_path / "out", "train")] == [row_id(0, 0, 0)]
    (entry,) = rejections(tmp_path / "out")
    assert (entry["line"], entry["reason"]) == (1, "the same pair as a.jsonl line 1")


def test_pairs_of_one_row_that_contradict_each_other(tmp_path):
    """a is its best answer and its worst one: a over b, b over a, and a over a, which is no pair."""
    path = jsonl(tmp_path / "a.jsonl", [ranked(["a", "b", "a"], [3, 2, 1])])
    counts = tokenized(tmp_path / "out", [path], pairing=("all", 0.0), drop=("contradiction",))
    assert (counts["read"], counts["train"], counts["contradictions"]) == (3, 0, 2)
    assert counts["reasons"] == {"contradiction": 2, "same sides": 1}


def test_pairs_of_several_rows_with_ranked_answers(tmp_path):
    """The second row turns one of the three pairs of the first round, and repeats the other two."""
    path = jsonl(tmp_path / "a.jsonl", [ranked(["a", "b", "c"], [3, 2, 1]), ranked(["a", "c", "b"], [3, 2, 1])])
    counts = tokenized(tmp_path / "out", [path], pairing=("all", 0.0), drop=KINDS)
    assert (counts["duplicates"], counts["contradictions"]) == (2, 2)
    left = [tuple(text_of(row, name) for name in ("chosen", "rejected")) for row in rows_of(tmp_path / "out", "train")]
    assert left == [("a", "b"), ("a", "c")]
    assert counts["reasons"] == {"duplicate": 2, "contradiction": 2}


# Real pairs


def real_pairs():
    path = DATA / "tulu_human_pairs.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {DATA}")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line.strip()]
    return path, [tuple(row[name] for name in ("prompt", "chosen", "rejected")) for row in rows]


@pytest.mark.parametrize("drop", [(), ("duplicate",), ("contradiction",), KINDS])
def test_real_pairs(tmp_path, drop):
    """497 rows, of which 35 repeat an earlier one and 31 have the preference of another turned round."""
    path, pairs = real_pairs()
    seen: set[tuple[str, str, str]] = set()
    again = [number for number, pair in enumerate(pairs) if pair in seen or seen.add(pair)]
    turned = [number for number, (prompt, one, other) in enumerate(pairs) if (prompt, other, one) in seen]
    assert (len(pairs), len(again), len(turned)) == (497, 35, 31)
    counts = tokenized(tmp_path / "out", [path], max_length=100_000, tokenizer=BYTES, drop=drop)
    assert (counts["duplicates"], counts["contradictions"]) == (35, 31)
    gone = set(again if "duplicate" in drop else []) | set(turned if "contradiction" in drop else [])
    left = [place_of(row["row_id"])[1] for row in rows_of(tmp_path / "out", "train")]
    assert left == [number for number in range(497) if number not in gone]
    assert counts["rejected"] == len(gone) == len(rejections(tmp_path / "out"))
