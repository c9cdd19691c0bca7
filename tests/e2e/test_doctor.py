"""The doctor as a command: exit status, what it prints and leaves, and that a run goes on from what it prepared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.running import ray_align
from tests.pipeline.doctor.test_doctor import as_messages, clean_rows
from tests.pipeline.files import config_file, jsonl

pytestmark = pytest.mark.slow  # none of these commands needs Ray

REPORT = {"tensorboard": False}
POLICY = {"kind": "x-transformers", "dim": 32, "depth": 1, "heads": 2}


def test_a_fault_fails_where_it_is_asked_to(tmp_path: Path) -> None:
    rows = clean_rows()
    jsonl(tmp_path / "pairs.jsonl", [*rows, *rows[:5]])
    path = config_file(tmp_path, data={"train": "pairs.jsonl", "max_length": 512}, policy=POLICY, report=REPORT)
    done = ray_align("doctor", path, "--fail-on", "warning")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "5 training pairs are exact repeats of an earlier pair duplicates" in done.stdout
    assert 'data.duplicates = "drop"' in done.stdout
    assert done.stderr == "ray-align: the doctor found at least one warning (--fail-on warning)\n"
    left = tmp_path / "runs/run/doctor"
    assert {"doctor.html", "doctor.json", "rejected.jsonl"} <= {file.name for file in left.iterdir()}
    assert [finding["number"] for finding in json.loads((left / "doctor.json").read_text())["findings"]] == [5]

    # Asked for worse things only, it is content; the run's name is free, and its tokens are there.
    assert ray_align("doctor", "--fail-on", "error", path).returncode == 0
    prepared = sorted((tmp_path / "workspace/tokens").glob("*/manifest.json"))
    done = ray_align("prepare", path, "loss.beta=0.5")
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "workspace/tokens").glob("*/manifest.json")) == prepared
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert (summary["pairs_used"], summary["pairs_repeated"], summary["rejected_by_kind"]) == (125, 5, {})


def test_messages_without_a_template(tmp_path: Path) -> None:
    """Told before Ray starts, with the file that has them."""
    jsonl(tmp_path / "pairs.jsonl", [as_messages(row) for row in clean_rows()])
    path = config_file(tmp_path, data={"train": "pairs.jsonl"}, policy=POLICY, report=REPORT)
    done = ray_align("doctor", path, "--fail-on", "error")
    assert (done.returncode, "no-template" in done.stdout) == (1, True), done.stdout + done.stderr
    done = ray_align("run", path)
    assert done.returncode == 2
    assert done.stderr.startswith("ray-align: pairs.jsonl: the data has message lists, but the tokenizer has no chat")
