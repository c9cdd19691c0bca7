"""A small quickstart writes what it always wrote, file by file, by content.

Two runs on one machine give bit-equal floats, also when it is busy: every worker and actor computes with one thread,
two ranks sum alike in any order, and `make_written.SMALL` keeps a batch of scoring apart from the order in which Ray
reads. Between kinds of machines bits differ, so the golden file holds digests for each kind, and a few values to be
compared on any other. After a change that is meant to change results: `python -m tests.e2e.make_written`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.make_written import GOLDEN, library_versions, machine, run_small
from tests.e2e.written import GROUPS, part_name, summaries, written

pytestmark = pytest.mark.ray


class Small(NamedTuple):
    run: Path
    workspace: Path
    digests: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    run, workspace = run_small(tmp_path_factory.mktemp("written"))
    return Small(run, workspace, written(run, workspace).digests())


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def differing(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of what is not equal, or stands on one side alone."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def test_integers_text_and_structure_are_as_they_were(small: Small, golden: dict[str, Any]) -> None:
    assert differing(golden["exact"], small.digests["exact"]) == []


def test_what_libraries_decide_is_as_it_was_with_the_same_versions(small: Small, golden: dict[str, Any]) -> None:
    if golden["libraries"] != library_versions():
        pytest.skip(f"the golden file was made with {golden['libraries']}, here are {library_versions()}")
    assert differing(golden["library"], small.digests["library"]) == []


def test_floats_are_bit_equal_on_a_known_kind_of_machine(small: Small, golden: dict[str, Any]) -> None:
    if machine() not in golden["floats"]:
        pytest.skip(f"no golden bits of a machine like this: {machine()}")
    assert differing(golden["floats"][machine()], small.digests["floats"]) == []


def test_losses_and_weights_agree_on_any_machine(small: Small, golden: dict[str, Any]) -> None:
    """With other instructions (ATEN_CPU_CAPABILITY=default, MKL_CBWR=COMPATIBLE) and all else equal, the first loss,
    which is ln 2 but for rounding, differed by 3e-6, the last by 7e-5 (beta is 5), norms by 2e-7 of themselves. The
    limits are ten times that and more. One pair in forty may change sides. What training does is far above: sft moves
    norms by 1e-3 to 8e-2, DPO the largest by 2e-3.
    """
    expected, found = golden["summaries"], summaries(small.run, small.workspace)
    start = pytest.approx(expected["norms"]["start"], rel=1e-5, abs=1e-7)
    if found["norms"]["start"] != start and golden["libraries"] != library_versions():
        pytest.skip(f"these versions of libraries begin with other random weights: {library_versions()}")
    assert found["norms"].keys() == expected["norms"].keys()
    for name, norms in expected["norms"].items():
        assert found["norms"][name] == pytest.approx(norms, rel=1e-5, abs=1e-7), name
    assert found["loss_first"] == pytest.approx(expected["loss_first"], abs=1e-4)
    assert found["loss_last"] == pytest.approx(expected["loss_last"], abs=1e-3)
    assert found["eval_accuracy"] == pytest.approx(expected["eval_accuracy"], abs=1.01 / 40)


# The comparison itself


def merge_parts(run: Path, workspace: Path) -> None:
    """All of a cache in one part; no difference, so the test below expects none."""
    for folder in (workspace / "cache").iterdir():
        parts = list(folder.glob("*.parquet"))
        rows = pa.concat_tables([pq.read_table(path) for path in parts]).sort_by("key")
        pq.write_table(rows, folder / "new.parquet", compression="none")
        (folder / "new.parquet").rename(folder / part_name(folder / "new.parquet", rows["key"].to_pylist()))
        for path in parts:
            path.unlink()


def change_a_length(run: Path, workspace: Path) -> None:
    path = run / "epochs" / "0" / "window-000000.npz"
    arrays = dict(np.load(path))
    arrays["lengths"][0, 0] += 1
    np.savez(path, **arrays)


def change_a_weight(run: Path, workspace: Path) -> None:
    path = run / "weights" / "model.safetensors"
    tensors = load_file(path)
    tensors["to_logits.weight"][0, 0] += 1e-6
    save_file(tensors, path, {"format": "pt"})


def rename_a_metric(run: Path, workspace: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("perf/step_seconds", "perf/seconds"), encoding="utf-8")


def leave_a_file(run: Path, workspace: Path) -> None:
    (run / "left.txt").touch()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (merge_parts, []),
        (change_a_length, ["exact run/epochs/0/window-000000.npz", "exact run/epochs/manifest.json"]),
        (change_a_weight, ["exact run/weights/manifest.json", "floats run/weights/model.safetensors"]),
        (rename_a_metric, ["exact run/metrics.jsonl"]),
        (leave_a_file, ["exact run/left.txt"]),
    ],
)
def test_a_change_shows_where_it_is(
    small: Small, tmp_path: Path, change: Callable[[Path, Path], None], expected: list[str]
) -> None:
    """Manifests show it too: what they state of a file is no longer true."""
    run, workspace = tmp_path / "run", tmp_path / "workspace"
    for source, target in ((small.run, run), (small.workspace, workspace)):
        shutil.copytree(source, target)
    change(run, workspace)
    now = written(run, workspace).digests()
    found = [f"{group} {name}" for group in GROUPS for name in differing(small.digests[group], now[group])]
    assert found == expected
