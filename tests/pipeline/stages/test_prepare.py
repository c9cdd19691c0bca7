"""Files of pairs to token parts, by the stage itself, in this process."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo.text.tokenize import Rules
from dpo.text.tokenizers import load_tokenizer
from pipeline.cluster.items import here
from pipeline.config import Config
from pipeline.data import pieces as pieces_
from pipeline.data.rejections import Counts
from pipeline.data.repeats import settle_repeats
from pipeline.data.sources import DataFile, data_files
from pipeline.data.tokenizer import open_tokenizer
from pipeline.errors import InputError
from pipeline.place import Place
from pipeline.stages import prepare
from pipeline.stages.preflight import Inputs
from pipeline.store.tokens import SPLITS, TOKENS, row_id
from tests.dpo.text.test_tokenize import merging_tokenizer
from tests.pipeline.files import config_file, jsonl
from tests.places import DATA

GOOD = [{"prompt": f"Question {i % 10}?", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(40)]


def tokenized(
    folder,
    paths,
    split="train",
    max_length=64,
    truncation="keep_start",
    eval_fraction=None,
    tokenizer=None,
    pairing=("best_worst", 0.0),
    columns=None,
    size=None,
    drop=(),
    trial=None,
):
    """Files to parts below `folder`, as the stage does; returns the counts added up."""
    splits = split if isinstance(split, list) else [split] * len(paths)
    files = [DataFile(str(path), s, 1.0, columns or {}) for path, s in zip(paths, splits, strict=True)]
    options = {
        "tokenizer": tokenizer or load_tokenizer("bytes"),
        "rules": Rules(max_length, truncation),
        "pairing": pairing,
        "eval_fraction": eval_fraction,
    }
    total = Counts()
    assert all(prepare.write_parts(here, prepare.pieces_of(files, trial, size), folder, options, total))
    for name in SPLITS:
        settle_repeats(folder, name, [str(path) for path in paths], total, set(drop))
    return {**total.counts, "reasons": dict(total.reasons)}


def rows_of(folder, split):
    return [row for path in sorted((folder / split).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def rejections(folder):
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((folder / "rejected").glob("*.jsonl")))
    return [json.loads(line) for line in text.split("\n")[:-1]]


def prompts(folder, split):
    return {bytes(row["prompt_ids"]) for row in rows_of(folder, split)}


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Parts and counts


def test_columns_that_nobody_reads_are_counted(tmp_path):
    rows = [{**GOOD[0], "notes": "n"}, {**GOOD[1], "notes": "n", "more": "m"}, GOOD[2]]
    total = Counts()
    files = [DataFile(str(jsonl(tmp_path / "a.jsonl", rows)), "train", 1.0, {})]
    options = {"tokenizer": load_tokenizer("bytes"), "rules": Rules(64), "pairing": ("best_worst", 0.0)}
    pieces = prepare.pieces_of(files, None)
    assert all(prepare.write_parts(here, pieces, tmp_path / "out", {**options, "eval_fraction": None}, total))
    assert (dict(total.unread), total.counts["train"]) == ({"notes": 2, "more": 1}, 3)


def test_a_trial_takes_the_first_pairs_of_each_file(tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", [{"no": 1}, *GOOD]) for name in "abc"]
    counts = tokenized(tmp_path / "out", paths, split=["train", "train", "eval"], trial=7)
    assert (counts["train"], counts["eval"], counts["read"], counts["rejected"]) == (7, 7, 17, 3)
    shares = [row_id(0, row) for row in (1, 2, 3, 4)] + [row_id(1, row) for row in (1, 2, 3)]
    assert [row["row_id"] for row in rows_of(tmp_path / "out", "train")] == shares
    assert tokenized(tmp_path / "more", paths[:1], trial=1000)["train"] == 40
    assert tokenized(tmp_path / "few", paths, trial=2)["train"] == 2


def test_a_trial_of_a_fraction_holds_a_pair_out(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", GOOD)
    whole = tokenized(tmp_path / "whole", [path], split=None, eval_fraction=0.2)
    assert whole["eval"] > 0
    counts = tokenized(tmp_path / "out", [path], split=None, eval_fraction=0.2, trial=3)
    assert (counts["train"], counts["eval"]) == (3, 1)
    assert prompts(tmp_path / "out", "eval") <= prompts(tmp_path / "whole", "eval")


def test_rows_become_tokens_under_their_ids(tmp_path):
    paths = [jsonl(tmp_path / "a.jsonl", GOOD[:3]), jsonl(tmp_path / "b.jsonl", [{"no": 1}, *GOOD[3:5]])]
    counts = tokenized(tmp_path / "out", paths)
    rows = rows_of(tmp_path / "out", "train")
    assert [row["row_id"] for row in rows] == [row_id(0, 0), row_id(0, 1), row_id(0, 2), row_id(1, 1), row_id(1, 2)]
    tokenizer = load_tokenizer("bytes")
    for row, pair in zip(rows, GOOD, strict=False):
        assert tokenizer.decode(row["prompt_ids"]) == pair["prompt"]
        assert tokenizer.decode(row["chosen_ids"]) == pair["chosen"] + "<eos>"
        assert tokenizer.decode(row["rejected_ids"]) == pair["rejected"] + "<eos>"
    assert pq.read_schema(next((tmp_path / "out" / "train").iterdir())).equals(TOKENS)
    assert (counts["read"], counts["train"], counts["eval"], counts["rejected"]) == (6, 5, 0, 1)
    lengths = [[len(row[f"{name}_ids"]) for name in ("prompt", "prompt", "chosen", "rejected")] for row in rows]
    assert counts["tokens"] == sum(map(sum, lengths))


def test_a_row_of_scored_answers_becomes_several_pairs(tmp_path):
    """Three answers of different scores make three pairs, each with an id of its own; all of them count."""
    ranked = {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
    path = jsonl(tmp_path / "a.jsonl", [GOOD[0], ranked, {**ranked, "scores": [1, 1, 1]}])
    counts = tokenized(tmp_path / "all", [path], pairing=("all", 0.0))
    ids = [row["row_id"] for row in rows_of(tmp_path / "all", "train")]
    assert ids == [row_id(0, 0), row_id(0, 1, 0), row_id(0, 1, 1), row_id(0, 1, 2)]
    assert (counts["read"], counts["train"], counts["rejected"]) == (5, 4, 1)
    assert tokenized(tmp_path / "best", [path])["train"] == 2


def test_a_row_of_too_many_pairs_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces_, "COPIES", 2)
    ranked = {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
    tokenized(tmp_path / "out", [jsonl(tmp_path / "a.jsonl", [ranked])], pairing=("all", 0.0))
    (rejection,) = rejections(tmp_path / "out")
    assert rejection["reason"] == "its 3 answers make more than 2 pairs; set data.margin"


def test_a_file_is_cut_into_parts(tmp_path, monkeypatch):
    """40 rows and 5 broken ones in parts of 10 rows read; a part without good rows writes no tokens."""
    monkeypatch.setattr(pieces_, "PART_ROWS", 10)
    monkeypatch.setattr(pieces_, "BATCH_PAIRS", 5)
    path = jsonl(tmp_path / "a.jsonl", [*GOOD, *[{}] * 10])
    counts = tokenized(tmp_path / "out", [path])
    assert sorted(content(tmp_path / "out")) == [
        "rejected/000000-000000-000004.jsonl",
        *[f"train/000000-000000-00000{part}.parquet" for part in range(4)],
    ]
    assert (counts["read"], counts["train"], counts["rejected"]) == (50, 40, 10)
    assert [row["row_id"] for row in rows_of(tmp_path / "out", "train")] == [row_id(0, i) for i in range(40)]


def test_cut_pairs_are_counted(tmp_path):
    pairs = [{"prompt": "p" * 30, "chosen": "c" * 50, "rejected": "r"}, GOOD[0]]
    counts = tokenized(tmp_path / "out", [jsonl(tmp_path / "a.jsonl", pairs)])
    assert counts["truncated"] == 1
    assert len(rows_of(tmp_path / "out", "train")[0]["chosen_ids"]) == 34


def test_pairs_encoded_apart_are_counted(tmp_path):
    """The tokenizer merges a and b, across the boundary of the second pair and of the third."""
    pairs = [dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) for texts in ("cba", "abc", "acb")]
    path = jsonl(tmp_path / "a.jsonl", pairs)
    assert tokenized(tmp_path / "out", [path], tokenizer=merging_tokenizer())["apart"] == 2


def test_a_file_without_rows(tmp_path):
    counts = tokenized(tmp_path / "out", [jsonl(tmp_path / "a.jsonl", [])])
    assert counts.pop("reasons") == {} and set(counts.values()) == {0}
    assert content(tmp_path / "out") == {}


def test_the_same_file_makes_the_same_bytes(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*GOOD, {"prompt": "x"}])
    for name in ("one", "two"):
        tokenized(tmp_path / name, [path], split=None, eval_fraction=0.3)
    assert content(tmp_path / "one") == content(tmp_path / "two") != {}


# What is rejected


def test_a_rejection_says_file_line_reason_and_how_the_row_begins(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(GOOD[0]), "{broken", "", json.dumps({"prompt": "p", "chosen": "c"}), json.dumps(GOOD[1])]
    lines += [json.dumps({**GOOD[0], "chosen": "c", "rejected": "c"}), json.dumps({**GOOD[0], "prompt": "q" * 99})]
    path.write_text("\n".join(lines), encoding="utf-8")
    counts = tokenized(tmp_path / "out", [path])
    found = rejections(tmp_path / "out")
    assert (counts["read"], counts["train"], counts["rejected"]) == (6, 2, 4)
    assert {entry["file"] for entry in found} == {str(path)}
    assert [entry["line"] for entry in found] == [2, 4, 6, 7]
    assert [entry["reason"] for entry in found] == [
        "not valid JSON: Expecting property name enclosed in double quotes at character 1",
        "no 'rejected' (the row has: prompt, chosen)",
        "chosen and rejected are the same",
        "the prompt has 99 tokens, and data.max_length is 64",
    ]
    assert found[0]["excerpt"] == "{broken"
    assert found[3]["excerpt"].startswith('{"prompt": "qqq')


def test_rows_of_parquet_are_named_by_row(tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD[0], {**GOOD[1], "chosen": None}]), tmp_path / "a.parquet")
    counts = tokenized(tmp_path / "out", [tmp_path / "a.parquet"])
    (entry,) = rejections(tmp_path / "out")
    assert (counts["train"], counts["rejected"]) == (1, 1)
    assert entry == {
        "file": str(tmp_path / "a.parquet"),
        "row": 2,
        "reason": "no 'chosen': it is null (the row has: prompt, chosen, rejected)",
        "kind": "no pair",
        "excerpt": str({**GOOD[1], "chosen": None}),
    }


def test_half_a_character_is_rejected_and_does_not_stop_the_rest(tmp_path):
    """No tokenizer takes half of a surrogate pair, and UTF-8 cannot write it."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**GOOD[0], "chosen": "\ud800"}) + "\n" + json.dumps(GOOD[1]), encoding="utf-8")
    counts = tokenized(tmp_path / "out", [path])
    assert (counts["train"], counts["rejected"]) == (1, 1)
    assert rejections(tmp_path / "out")[0]["reason"].endswith("half of a surrogate pair")


# The held-out fraction


def test_a_fraction_splits_by_prompt(tmp_path):
    pairs = [{**GOOD[0], "prompt": f"Question {i % 200}?", "chosen": f"c{i}"} for i in range(600)]
    counts = tokenized(tmp_path / "out", [jsonl(tmp_path / "a.jsonl", pairs)], split=None, eval_fraction=0.25)
    held_out, trained = prompts(tmp_path / "out", "eval"), prompts(tmp_path / "out", "train")
    assert held_out.isdisjoint(trained)
    assert len(held_out | trained) == 200
    assert counts["train"] + counts["eval"] == 600
    assert abs(len(held_out) - 50) < 5 * 6.2  # five standard deviations


def test_a_split_does_not_move_when_rows_are_added_or_turned_about(tmp_path):
    draw = random.Random(1)
    pairs = [{**GOOD[0], "prompt": f"Question {i}?"} for i in range(100)]
    more = [{**GOOD[1], "prompt": f"Other {i}?"} for i in range(100)] + pairs
    draw.shuffle(more)
    for name, rows in (("few", pairs), ("many", more)):
        tokenized(tmp_path / name, [jsonl(tmp_path / f"{name}.jsonl", rows)], split=None, eval_fraction=0.4)
    assert prompts(tmp_path / "few", "eval") < prompts(tmp_path / "many", "eval")
    assert prompts(tmp_path / "few", "train") < prompts(tmp_path / "many", "train")


def test_a_larger_fraction_holds_out_more_of_the_same(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{**GOOD[0], "prompt": f"Question {i}?"} for i in range(100)])
    for fraction in (0.2, 0.5):
        tokenized(tmp_path / str(fraction), [path], split=None, eval_fraction=fraction)
    assert prompts(tmp_path / "0.2", "eval") < prompts(tmp_path / "0.5", "eval")


def test_a_prompt_of_messages_is_split_as_one(tmp_path):
    user = [{"role": "user", "content": "Hi"}]
    pairs = [{"prompt": user, "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(20)]
    tokenizer = load_tokenizer("bytes", chat_template="chatml")
    path = jsonl(tmp_path / "a.jsonl", pairs)
    counts = tokenized(tmp_path / "o", [path], None, max_length=99, eval_fraction=0.5, tokenizer=tokenizer)
    assert sorted((counts["train"], counts["eval"])) == [0, 20]


# What the run is told


def account(tmp_path, paths, **data):
    """Prepare these files as a run does; returns its place and what the stage returns."""
    config = Config.load(config_file(tmp_path, run={"dir": "."}, data={"train": [str(p) for p in paths], **data}))
    place = Place.of(config)
    place.run_dir.mkdir(exist_ok=True)
    inputs = Inputs(data_files(config.data, place.workspace), open_tokenizer(config), None)
    return place, prepare.prepare(place, inputs, here)


def test_a_run_gets_its_counts_and_its_rejections(tmp_path):
    paths = [jsonl(tmp_path / name, [*GOOD, {"n": name}]) for name in ("a.jsonl", "b.jsonl")]
    place, made = account(tmp_path, paths)
    assert made.counts == {
        "pairs_read": 82,
        "pairs_used": 80,
        "pairs_rejected": 2,
        "pairs_held_out": 0,
        "pairs_repeated": 40,
        "pairs_contradicting": 0,
        "rejected_by_kind": {"no pair": 2},
    }
    lines = (place.run_dir / "rejected.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["file"] for line in lines[:-1]] == [str(path) for path in paths]


def test_a_rejected_text_may_hold_any_line_separator(tmp_path):
    """U+2028, U+0085 and others end a line for str.splitlines, but not in a file of JSON lines."""
    text = "a\u2028b\u0085c\x1cd\re"
    path = tmp_path / "a.jsonl"
    rows = [*GOOD, {"prompt": text, "chosen": text}, {"prompt": text}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    place, made = account(tmp_path, [path])
    lines = (place.run_dir / "rejected.jsonl").read_bytes().decode().split("\n")
    entries = [json.loads(line) for line in lines[:-1]]
    assert [entry["line"] for entry in entries] == [41, 42]
    assert all("a\u2028b\u0085c" in entry["excerpt"] for entry in entries)
    assert made.counts["pairs_rejected"] == 2


def test_too_many_rejections_stop_the_run(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*GOOD[:7], *[{"prompt": "p"}] * 3, *GOOD[7:]])  # 3 of 43 are 7 %
    with pytest.raises(InputError) as error:
        account(tmp_path, [path])
    said = "3 of 43 rows cannot be used, more than data.max_rejected_fraction = 0.05 allows"
    assert str(error.value).startswith(said)
    assert "allows: 3 no pair, as a.jsonl line 8: no 'chosen' (the row has: prompt). All rejected" in str(error.value)
    rejected = Path(str(error.value).partition("All rejected rows are listed in ")[2].partition(";")[0])
    assert len(rejected.read_text(encoding="utf-8").splitlines()) == 3


def test_as_many_rejections_as_are_allowed_do_not_stop_it(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*GOOD[:6], {}, {}])
    assert account(tmp_path, [path], max_rejected_fraction=0.25)[1].counts["pairs_used"] == 6


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "holds no rows."),
        ([{}], "None of the 1 rows can be used. Reasons: 1 no pair, as a.jsonl line 1: no 'chosen'"),
    ],
)
def test_nothing_to_train_on_stops_the_run(tmp_path, rows, expected):
    with pytest.raises(InputError) as error:
        account(tmp_path, [jsonl(tmp_path / "a.jsonl", rows)], max_rejected_fraction=1.0)
    assert expected in str(error.value)


# Real pairs


def test_real_pairs(tmp_path):
    """A plain set with repeated rows, as its owners publish it: nothing is lost without a word."""
    path = DATA / "tulu_human_pairs.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {DATA}")
    counts = tokenized(tmp_path / "out", [path], None, max_length=256, truncation="drop", eval_fraction=0.2)
    assert counts["read"] == 497 == counts["train"] + counts["eval"] + counts["rejected"]
    reasons = {entry["reason"].partition(" ")[2] for entry in rejections(tmp_path / "out")}
    assert reasons == {"tokens, and data.max_length is 256"}
    assert prompts(tmp_path / "out", "eval").isdisjoint(prompts(tmp_path / "out", "train"))
    assert min(counts["eval"], counts["train"]) > 0
