"""A run that another version of the program has begun goes on under this one, from its checkpoint, and ends the same.

The fixture is what a killed run has left (see `make_begun_run`). The program may have been moved about since; what it
finds on disk must mean the same to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.make_begun_run import ARCHIVE, EXPECTED, LIBRARIES, MADE_WITH, RUN, extract, versions
from tests.e2e.running import ray_align, rows, summary

pytestmark = pytest.mark.ray

CHECKPOINT, STEPS, STEPS_PER_EPOCH = 18, 40, 5
# What the run reads and must not make again; beside it only the note that says when a cache was used changes.
MADE_BEFORE = ("pairs.jsonl", "workspace/tokens", "workspace/models", "workspace/cache", str(RUN / "epochs"))
USED = "used.json"


class Resumed(NamedTuple):
    folder: Path
    before: dict[str, tuple[int, bytes]]  # files that must stay: time of change and content
    log: dict[str, list[dict[str, Any]]]  # rows of the run's JSONL files before

    @property
    def run(self) -> Path:
        return self.folder / RUN


def kept(folder: Path, *names: str) -> dict[str, tuple[int, bytes]]:
    """Time of change, in nanoseconds, and content of all files below some names."""
    paths = [p for name in names for p in (folder / name, *(folder / name).rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths if p.name != USED}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    folder = tmp_path_factory.mktemp("begun").resolve()
    extract(ARCHIVE, folder)
    made_with = json.loads((folder / MADE_WITH).read_text(encoding="utf-8"))
    if made_with != versions():
        pytest.skip(f"the fixture was made with {made_with}, here are {versions()}: {' and '.join(LIBRARIES)} decide")
    found = Resumed(
        folder,
        kept(folder, *MADE_BEFORE),
        {name: rows(folder / RUN / name) for name in ("metrics.jsonl", "audit.jsonl")},
    )
    done = ray_align("run", str(folder / "run.toml"))
    assert done.returncode == 0, done.stdout + done.stderr
    return found


def test_tokens_model_log_probs_and_order_are_not_made_again(resumed: Resumed) -> None:
    assert len(resumed.before) > 20
    now = kept(resumed.folder, *MADE_BEFORE)
    assert [name for name, entry in resumed.before.items() if now.get(name) != entry] == []
    found = summary(resumed.run)
    assert (found["sequences_scored"], found["sequences_reused"]) == (0, 2 * found["pairs_used"])
    for kind, count in (("tokens", 1), ("models", 1), ("cache", 2)):  # the second cache is that of the trained policy
        assert len(list((resumed.folder / "workspace" / kind).iterdir())) == count


def test_training_goes_on_from_the_checkpoint(resumed: Resumed) -> None:
    """Rows of the steps before it stay as they were; those of the steps after it, which were lost, are written anew."""
    attempts = rows(resumed.run / "checkpoints" / "attempts.jsonl")
    assert [attempt["from_step"] for attempt in attempts] == [0, CHECKPOINT]
    before = [row for row in resumed.log["metrics.jsonl"] if row["step"] <= CHECKPOINT]
    assert len(before) < len(resumed.log["metrics.jsonl"])
    now = rows(resumed.run / "metrics.jsonl")
    assert now[: len(before)] == before
    assert [row["step"] for row in now if "loss" in row] == list(range(1, STEPS + 1))
    assert summary(resumed.run)["steps"] == STEPS


def test_every_pair_is_trained_on_once_an_epoch(resumed: Resumed) -> None:
    audit = rows(resumed.run / "audit.jsonl")
    assert audit[: len(resumed.log["audit.jsonl"])] == resumed.log["audit.jsonl"]
    counted = [line for line in audit if line["attempt"] == 2 or line["step"] <= CHECKPOINT]
    assert [line["step"] for line in counted] == list(range(1, STEPS + 1))
    epochs = [
        sorted(row for line in counted if line["epoch"] == epoch for row in line["row_ids"])
        for epoch in range(STEPS // STEPS_PER_EPOCH)
    ]
    assert len(set(epochs[0])) == len(epochs[0]) == summary(resumed.run)["pairs_per_epoch"]
    assert all(epoch == epochs[0] for epoch in epochs)


def test_the_weights_are_those_of_a_run_that_nothing_stopped(resumed: Resumed) -> None:
    weights, expected = (load_file(path) for path in (exported(resumed), resumed.folder / EXPECTED))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
    start = load_file(next((resumed.folder / "workspace" / "models").glob("*/model.safetensors")))
    assert max(float((start[name] - tensor).abs().max()) for name, tensor in expected.items()) > 1e-2


def exported(resumed: Resumed) -> Path:
    return resumed.run / "export" / "model.safetensors"


def test_run_again_does_nothing(resumed: Resumed) -> None:
    names = [*MADE_BEFORE, *(str(RUN / name) for name in ("weights", "evaluation", "export", "checkpoints"))]
    names += [str(RUN / name) for name in ("metrics.jsonl", "audit.jsonl")]
    before = kept(resumed.folder, *names)
    again = ray_align("run", str(resumed.folder / "run.toml"))
    assert (again.returncode, again.stderr) == (0, "")
    now = kept(resumed.folder, *names)
    assert [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)] == []
    assert "0 sequences scored" in again.stdout and "starting workers" not in again.stdout
