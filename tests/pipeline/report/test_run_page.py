"""The report of a real run, and of one with many steps."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.tokenizer import open_tokenizer
from pipeline.report.evidence import Curve, read_evidence
from pipeline.report.run_page import POINTS, Asked, thinned, write_report
from tests.pipeline.lab import config

pytestmark = pytest.mark.group


def asked(folder, run):
    parts = sorted(folder.glob("workspace/tokens/*/eval/*.parquet"))
    files = [str(folder / "train.jsonl"), str(folder / "eval.jsonl")]
    return Asked(run, "<b>x</b>", parts, files, open_tokenizer(config(folder)), 1.0, {"Topic": {"<i>": "1"}})


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole / "runs" / "base", tmp_path / "base")
    return tmp_path / "base"


def test_a_run_leaves_its_report(whole):
    run = whole / "runs" / "base"
    assert (run / "report.html").is_file() and (run / "curves.png").is_file()
    assert "6 steps, loss 0.6931 at the first" in (run / "report.html").read_text(encoding="utf-8")


def test_every_held_out_pair_is_there_as_text_with_its_place(whole):
    run = whole / "runs" / "base"
    rows = [json.loads(line) for line in (run / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    given = [json.loads(line) for line in (whole / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(given) == 12
    measured = {
        row["row_id"]: row for path in run.glob("evaluation/pairs-*.parquet") for row in pq.read_table(path).to_pylist()
    }
    for row in rows:
        source = given[row["line"] - 1]
        assert Path(row["file"]) == whole / "eval.jsonl"
        assert row["prompt"].endswith(source["prompt"]) and row["chosen"].startswith(source["chosen"])
        found = measured[row["row_id"]]
        moved = [found[f"policy_{side}"] - found[f"reference_{side}"] for side in ("chosen", "rejected")]
        assert row["margin"] == pytest.approx(moved[0] - moved[1])
        assert (row["chosen_moved"], row["rejected_moved"]) == pytest.approx(tuple(moved))


def test_evidence_is_what_the_run_measured(whole):
    parts = sorted(whole.glob("workspace/tokens/*/eval/*.parquet"))
    found = read_evidence(whole / "runs" / "base", parts, 1.0)
    assert found.curves["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.held_out is not None and len(found.held_out.row_id) == 12
    assert (found.held_out.chosen_tokens > 0).all()


def test_it_is_written_again_only_when_something_changed(whole, run):
    page = write_report(asked(whole, run))
    text = page.read_text(encoding="utf-8")
    page.write_text(text + "<!-- kept -->", encoding="utf-8")
    write_report(asked(whole, run))
    assert page.read_text(encoding="utf-8").endswith("<!-- kept -->")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 7, "loss": 0.5}\n')
    write_report(asked(whole, run))
    assert not page.read_text(encoding="utf-8").endswith("<!-- kept -->")


def test_the_page_escapes_names_and_needs_nothing_beside_it(whole, run):
    (run / "report.html").unlink()
    text = write_report(asked(whole, run)).read_text(encoding="utf-8")
    assert "<b>x</b>" not in text and "&lt;b&gt;x" in text and "&lt;i&gt;" in text
    assert "http" not in text


def test_many_steps_are_drawn_small(whole, run):
    draw = np.random.default_rng(0)
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(1, 50_001):
            values = {name: float(draw.normal()) for name in ("loss", "rewards/margins", "grad_norm", "rewards/chosen")}
            log.write(json.dumps({"step": step, **values}) + "\n")
    assert write_report(asked(whole, run)).stat().st_size < 3e6


def test_many_steps_of_answers_are_a_few_on_the_page_and_it_says_so(whole, run):
    steps = [5 * n for n in range(1, 13)]
    during = {str(step): f"text of <{step}>" for step in steps}
    rows = [
        {"prompt": "p", "chosen": "c", "rejected": "r", "before": "b", "after": "a", "during": during},
        {"prompt": "q", "chosen": "c", "rejected": "r", "before": "b", "after": "a"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "evaluation" / "answers.jsonl").write_text(text, encoding="utf-8")
    (run / "report.html").unlink()
    page = write_report(asked(whole, run)).read_text(encoding="utf-8")
    assert "Of 12 evaluations in training 5 are shown." in page
    titles = re.findall(r"<div><b>([a-z][^<]*)</b>", page.partition("<h2>Answers</h2>")[2].partition("<h2>")[0])
    between = [f"after step {step}" for step in (5, 20, 35, 45, 60)]
    alone = ["before", "after", "chosen in the data"]
    assert titles == ["p", alone[0], *between, *alone[1:], "q", *alone]
    assert "text of &lt;45&gt;" in page and "text of &lt;50&gt;" not in page


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("")])
def test_lost_metrics_stop_no_report(whole, run, spoil):
    spoil(run / "metrics.jsonl")
    text = write_report(asked(whole, run)).read_text(encoding="utf-8")
    assert "metrics.jsonl has no step that can be read" in text and "Margins of the held-out pairs" in text


def test_pictures_that_were_removed_are_drawn_again(whole, run):
    write_report(asked(whole, run))
    (run / "curves.png").unlink()
    write_report(asked(whole, run))
    assert (run / "curves.png").is_file()


def test_a_long_curve_is_thinned_to_means():
    values = np.arange(10 * POINTS, dtype=float)
    steps, means = thinned(Curve(values + 1, values))
    assert len(steps) == len(means) == POINTS
    assert means[:2].tolist() == [4.5, 14.5] and means.mean() == pytest.approx(values.mean())
