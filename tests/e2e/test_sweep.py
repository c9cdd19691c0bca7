"""A sweep on a real Ray: one Ray for all of its runs, one scoring, and nothing for the command that is repeated."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest

from tests.conftest import sessions_of_ray
from tests.e2e.running import ray_align, summary
from tests.pipeline.lab import made

pytestmark = pytest.mark.ray

KEYS = ("loss.beta=0.1,2", "train.learning_rate=1e-3,2e-3")
SWEEP = "base--sweep--loss.beta--train.learning_rate"


class Swept(NamedTuple):
    folder: Path
    done: CompletedProcess[str]
    sessions: int  # of Ray, that were started for it

    @property
    def rows(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "runs" / SWEEP / "sweep.json").read_text(encoding="utf-8"))["runs"]

    @property
    def runs(self) -> list[Path]:
        return [self.folder / "runs" / row["run"] for row in self.rows]


def sweep(folder: Path) -> Swept:
    before = sessions_of_ray()
    done = ray_align("sweep", str(folder / "tiny.toml"), *KEYS)
    return Swept(folder, done, len(sessions_of_ray() - before))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return sweep(made(tmp_path_factory.mktemp("sweep") / "lab"))


def test_four_runs_share_one_ray_and_score_each_sequence_once(first: Swept) -> None:
    assert first.done.returncode == 0, first.done.stdout + first.done.stderr
    assert first.sessions == 1
    counts = [(summary(run)["sequences_scored"], summary(run)["sequences_reused"]) for run in first.runs]
    assert sorted(counts) == [(0, 120), (0, 120), (0, 120), (120, 0)]  # of 48 pairs, and 12 held out
    assert len(list((first.folder / "workspace" / "tokens").iterdir())) == 1
    assert {row["steps"] for row in first.rows} == {6}


def test_every_run_is_one_by_itself(first: Swept) -> None:
    """With its own log of Ray, its report and its export; on stderr there is nothing."""
    for run in first.runs:
        assert (run / "export" / "model.safetensors").is_file() and (run / "report.html").is_file()
        assert (run / "ray.log").is_file() and not (run / "lease.json").exists()
    assert first.done.stderr == ""


def test_the_same_command_starts_nothing_and_prints_the_same_table(first: Swept) -> None:
    rows, before = first.rows, first.done.stdout
    again = sweep(first.folder)
    assert (again.done.returncode, again.sessions, again.rows) == (0, 0, rows)
    assert "4 runs, 4 of them finished before" in again.done.stdout
    table = [line for line in before.splitlines() if line.startswith(("│", "┃"))]
    assert len(table) > 4 and all(line in again.done.stdout for line in table)
