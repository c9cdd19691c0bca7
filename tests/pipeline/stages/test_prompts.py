"""Answers before, during and after training stand beside each other, in runs of the whole line."""

import json

import pytest

from pipeline.store.records import read_manifest
from tests.pipeline.lab import SFT, made

pytestmark = pytest.mark.group

ASK = ("evaluate.generate_prompts=3", "evaluate.max_new_tokens=8", "train.learning_rate=1e-2")
STEPS = "evaluate.every_steps=2"


def answers(folder):
    path = folder / "runs" / "base" / "evaluation" / "answers.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(folder):
    """What the evaluation was made of, and when."""
    path = folder / "runs" / "base" / "evaluation" / "manifest.json"
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest.made_of, path.stat().st_mtime_ns


def test_the_answers_of_each_step_come_before_those_of_the_weights_that_are_written(lab, tmp_path):
    folder, words = made(tmp_path / "lab"), (*SFT, *ASK, STEPS, "evaluate.best_by=loss")
    found = lab.line(folder, *words)
    rows = answers(folder)
    assert [list(row["during"]) for row in rows] == [["2", "4", "6"]] * 3
    assert all(row["during"][str(found["weights_step"])] == row["after"] for row in rows)
    assert any(row["during"]["2"] != row["after"] or row["before"] != row["during"]["2"] for row in rows)
    page = (folder / "runs" / "base" / "report.html").read_text(encoding="utf-8")
    shown = [page.index(f"<b>{title}</b>") for title in ("before", "after step 2", "after step 4", "after")]
    assert shown == sorted(shown)
    before = evaluated(folder)
    assert isinstance(lab.line(folder, *words), dict) and evaluated(folder) == before  # nothing to do
    samples = folder / "runs" / "base" / "samples.jsonl"
    lines = samples.read_text(encoding="utf-8").splitlines()
    samples.write_text(f"{lines[0]}\n{lines[2]}\n", encoding="utf-8")
    lab.line(folder, *words)
    assert [list(row["during"]) for row in answers(folder)] == [["2", "6"]] * 3
    lab.line(folder, *words, "evaluate.generate_prompts=5")
    assert ["during" in row for row in answers(folder)] == [True] * 3 + [False] * 2
    lab.line(folder, *words, "evaluate.max_new_tokens=4")  # with which the answers in training would end elsewhere
    assert not any("during" in row for row in answers(folder))


@pytest.mark.parametrize(("positions", "answers"), [("absolute", False), ("rotary", True)])
def test_training_goes_on_without_answers_that_may_run_out_of_positions(lab, tmp_path, positions, answers):
    """The model has 64 positions, and the prompts more than 14 tokens."""
    folder, words = made(tmp_path / "lab"), (STEPS, "evaluate.generate_prompts=3", "evaluate.max_new_tokens=50")
    assert lab.line(folder, *words, f"policy.positions={positions}", until="train")["steps"] == 6
    assert (folder / "runs" / "base" / "samples.jsonl").exists() == answers


def test_an_evaluation_without_them_stays_what_it_was(lab, tmp_path):
    """As one of an earlier version: nothing is asked in training, and later nothing is trained again."""
    folder = made(tmp_path / "lab")
    lab.line(folder, *SFT, *ASK)
    (made_of, _) = before = evaluated(folder)
    assert "during" not in made_of and not any("during" in row for row in answers(folder))
    assert isinstance(lab.line(folder, *SFT, *ASK, STEPS), dict)
    assert evaluated(folder) == before
