"""The line in one process does what the program does: it ends with the same files, and goes on when it is killed."""

import pytest

from tests.pipeline.lab import SFT, copied, losses, made

pytestmark = pytest.mark.group


def test_the_line_leaves_what_a_run_leaves(whole):
    assert {"config.json", "weights", "export", "epochs", "summary.json"} <= {p.name for p in whole.glob("runs/base/*")}
    assert len(losses(whole)) == 7


def test_a_killed_run_goes_on_to_the_same_losses(lab, whole, tmp_path):
    folder = made(tmp_path / "lab")
    assert lab.line(folder, *SFT, stop_at=5) == "stopped"
    assert lab.line(folder, *SFT)["steps"] == 6
    assert losses(folder) == losses(whole)


def test_a_copy_does_nothing_again(lab, whole, tmp_path):
    folder = copied(whole, tmp_path / "lab")
    before = times(folder)
    assert lab.line(folder, *SFT)["sequences_scored"] == 120  # by all commands of this name
    assert times(folder) == before


def times(folder):
    """When each file with weights or cached log-probs was written."""
    files = [*folder.rglob("*.safetensors"), *(folder / "workspace" / "cache").rglob("*.parquet")]
    assert len(files) > 2
    return {path: path.stat().st_mtime_ns for path in files}
