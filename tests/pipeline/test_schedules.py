"""Two and three runs in one workspace, in any order of operations, either killed anywhere: each ends as if alone."""

import os

import pytest

from pipeline.store.artifacts import MAKER
from tests.pipeline.lab import made
from tests.pipeline.schedules import numbers, ordered, play, tidied

pytestmark = pytest.mark.slow
FEW, MANY = 10, 200
KILL = 0.003  # at an operation: about one of two runs dies


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The numbers of a run that nothing disturbed."""
    folder = made(tmp_path_factory.mktemp("alone") / "lab", rows=24, files=3)
    assert play(0, folder, [(ordered, (folder,))], 0.0) == ["done"]
    return numbers(folder, "base")


def runs_of(folder, seed):
    """Two runs of different names, two of one name, or three with a compaction of the cache."""
    names = [("a", "b"), ("a", "a"), ("a", "b", "c")][seed % 3]
    actors = [(ordered, (folder, f"run.name={name}")) for name in names]
    return names, actors + ([(tidied, (folder,))] if len(names) == 3 else [])


SEEDS = [*range(FEW), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(FEW, MANY))]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_run_ends_as_if_alone_or_is_refused(tmp_path, alone, seed):
    folder = made(tmp_path / "lab", rows=24, files=3)
    names, actors = runs_of(folder, seed)
    said = play(seed, folder, actors, KILL if seed % 2 else 0.0)
    for name, word in zip(names, said, strict=False):
        if word == "done":
            assert numbers(folder, name) == alone, (name, said)
        elif "is being worked on by" in word:
            assert names[0] == names[1]
        else:
            assert word == "killed" or "removed by a compaction" in word, said
    assert "done" in said or "killed" in said or len(names) == 3, said
    for path in folder.glob("workspace/*/*/"):  # killed before it said whose they are, which is found by their age
        if not (path / MAKER).exists():
            os.utime(path, (0, 0))
    for name in dict.fromkeys(names):  # the same command goes on, and finds nothing that is wrong
        assert play(seed, folder, [(ordered, (folder, f"run.name={name}"))], 0.0) == ["done"]
        assert numbers(folder, name) == alone, said
    folders = [path for kind in ("tokens", "models", "sft") for path in (folder / "workspace" / kind).glob("*/")]
    assert len([path for path in folders if path.is_dir() and any(path.iterdir())]) == 3, folders
