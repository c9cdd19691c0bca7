"""Which checkpoint is taken up, and which are thrown away. Writing one needs a process group: see test_training.py."""

import json

import pytest
import torch.distributed as dist

from dpo.lm.whole_folder import describe
from pipeline.store.artifacts import MANIFEST, write_manifest
from pipeline.worker.checkpoints import begin_attempt, best_of, commit, keep_last, latest
from pipeline.worker.job import Best
from tests.pipeline.crashes import every_crash


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(folder, attempt, step, job="job", best=None):
    """A checkpoint of two shards, as two ranks and `commit` leave it."""
    path = folder / f"{attempt:03}-{step:08}"
    (path / "state").mkdir(parents=True)
    for rank in range(2):
        (path / "state" / f"rank{rank}.pt").write_bytes(bytes([attempt, step, rank]) * 10)
    files = {f"state/rank{rank}.pt": describe(path / "state" / f"rank{rank}.pt") for rank in range(2)}
    counts = {"step": step, "attempt": attempt, "world_size": 2, "best": best}
    write_manifest(path, job, counts, files, {})
    return path


def test_the_latest_is_that_of_the_largest_step(tmp_path):
    make(tmp_path, 1, 10)
    newest = make(tmp_path, 1, 20)
    make(tmp_path, 2, 15)
    make(tmp_path, 2, 30, job="another job")
    assert latest(tmp_path, "job") == (newest, {"step": 20, "attempt": 1, "world_size": 2, "best": None})


def test_of_two_at_one_step_it_is_that_of_the_later_attempt(tmp_path):
    make(tmp_path, 1, 10)
    second = make(tmp_path, 2, 10)
    assert latest(tmp_path, "job")[0] == second


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "no shard", "short shard", "changed shard"])
def test_a_torn_or_damaged_checkpoint_is_passed_over(tmp_path, damage):
    before, torn = make(tmp_path, 1, 10), make(tmp_path, 1, 20)
    shard, manifest = torn / "state" / "rank1.pt", torn / MANIFEST
    if damage == "no manifest":
        manifest.unlink()
    if damage == "half a manifest":
        manifest.write_bytes(manifest.read_bytes()[:60])
    if damage == "no shard":
        shard.unlink()
    if damage == "short shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    if damage == "changed shard":
        shard.write_bytes(b"x" + shard.read_bytes()[1:])
    assert latest(tmp_path, "job")[0] == before


def test_there_may_be_none(tmp_path):
    assert latest(tmp_path, "job") is None
    assert latest(tmp_path / "no folder", "job") is None
    make(tmp_path, 1, 10, job="another job")
    (tmp_path / "001-00000020").mkdir()
    assert latest(tmp_path, "job") is None


def test_the_last_are_kept(tmp_path):
    paths = {step: make(tmp_path, 1, step) for step in (5, 100, 20, 30)}
    other = make(tmp_path, 1, 7, job="another job")
    keep_last(tmp_path, "job", 2)
    assert sorted(tmp_path.iterdir()) == sorted([paths[30], paths[100], other])
    assert latest(tmp_path, "job")[0] == paths[100]


def test_what_a_later_attempt_writes_is_kept_beside_a_damaged_one_of_a_larger_step(tmp_path):
    make(tmp_path, 1, 100)
    later = make(tmp_path, 2, 50)
    keep_last(tmp_path, "job", 1)
    assert list(tmp_path.iterdir()) == [later]


def test_what_the_last_name_as_the_best_is_kept(tmp_path):
    paths = {step: make(tmp_path, 1, step) for step in (5, 10, 20)}
    for step, best in ((30, 10), (40, 20)):
        paths[step] = make(tmp_path, 1, step, best=[0.5, best, paths[best].name])
    keep_last(tmp_path, "job", 2)
    assert sorted(tmp_path.iterdir()) == [paths[step] for step in (10, 20, 30, 40)]
    keep_last(tmp_path, "job", 1)
    assert sorted(tmp_path.iterdir()) == [paths[20], paths[40]]
    best = Best(0.5, 20, paths[20].name)
    assert best_of(tmp_path, best) == (paths[20], {"step": 20, "attempt": 1, "world_size": 2, "best": None})
    (paths[20] / "state" / "rank0.pt").write_bytes(b"damaged")
    assert best_of(tmp_path, best) is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_are_kept_stay(tmp_path, count):
    path = make(tmp_path, 1, 5)
    keep_last(tmp_path, "job", count)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_checkpoint_does_not_push_out_what_is_written_after_it(tmp_path):
    for attempt, step in ((1, 3), (1, 6), (2, 4)):  # the second attempt found 6 damaged and went on from 3
        path = tmp_path / f"{attempt:03}-{step:08}"
        path.mkdir()
        write_manifest(path, "job", {"step": step, "attempt": attempt, "world_size": 2}, {}, {})
    keep_last(tmp_path, "job", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["002-00000004"]


def test_any_flipped_bit_of_a_manifest_is_as_before_or_passed_over(tmp_path):
    before, newest = make(tmp_path, 1, 3), make(tmp_path, 1, 4, best=[0.5, 3, "001-00000003"])
    allowed = latest(tmp_path, "job"), (before, {"step": 3, "attempt": 1, "world_size": 2, "best": None})
    path = newest / MANIFEST
    whole, found = path.read_bytes(), set()
    with path.open("r+b") as file:
        for bit in range(8 * len(whole)):
            for byte in (whole[bit // 8] ^ 1 << bit % 8, whole[bit // 8]):
                file.seek(bit // 8)
                file.write(bytes([byte]))
                file.flush()
                now = latest(tmp_path, "job")
                assert now in allowed
                found.add(now[0])
    assert found == {before, newest}


def test_a_record_of_an_older_version_is_held_to_its_folders_name(tmp_path):
    """It has no digest of itself: one bit makes a 5 of its step 4."""
    before, path = make(tmp_path, 1, 2), make(tmp_path, 1, 4) / MANIFEST
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    path.write_text(json.dumps(content))
    assert latest(tmp_path, "job")[1]["step"] == 4
    path.write_text(json.dumps(content).replace('"step": 4', '"step": 5'))
    assert latest(tmp_path, "job")[0] == before


def test_what_was_just_written_stays_whatever_is_there(tmp_path):
    for step in (100, 110):
        make(tmp_path, 3, step)
    newest = make(tmp_path, 1, 120)
    keep_last(tmp_path, "job", 1, newest.name)
    assert list(tmp_path.iterdir()) == [newest]


def test_an_attempt_has_a_number_above_all_that_are_there(tmp_path):
    assert begin_attempt(tmp_path / "new", "job") == 1
    make(tmp_path, 3, 100), make(tmp_path, 2, 90)
    assert begin_attempt(tmp_path, "job") == 4  # though the log of attempts was lost
    (tmp_path / "attempts.jsonl").write_bytes(b"\xff\n" * 6)  # attempts that ended before they saved anything
    assert begin_attempt(tmp_path, "job") == 7


def test_what_an_attempt_cannot_use_makes_room(tmp_path):
    good, damaged, other = make(tmp_path, 1, 10), make(tmp_path, 1, 20), make(tmp_path, 1, 5, job="another job")
    (make(tmp_path, 2, 30) / MANIFEST).unlink()
    (damaged / MANIFEST).write_text("{")
    (tmp_path / "002-00000010.universal" / "state").mkdir(parents=True)
    for name in ("mine", "attempts.jsonl"):
        (tmp_path / name).touch()
    assert begin_attempt(tmp_path, "job") == 3 and not other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [good.name, "attempts.jsonl", "mine"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_crash_anywhere_leaves_a_whole_checkpoint(tmp_path, monkeypatch, cut):
    """While the third is written, committed, and the first removed."""

    def work(n):
        path = tmp_path / str(n) / "001-00000030"
        (path / "state").mkdir(parents=True)
        for rank in range(2):
            with (path / "state" / f"rank{rank}.pt").open("wb") as file:
                file.write(bytes([rank]) * 40)
        commit(path, "job", {"step": 30, "attempt": 1, "world_size": 2})
        keep_last(tmp_path / str(n), "job", 2)

    for n in range(60):
        make(tmp_path / str(n), 1, 10), make(tmp_path / str(n), 1, 20)
    n, steps = 0, []
    for n in every_crash(monkeypatch, work, cut):
        path, counts = latest(tmp_path / str(n), "job")
        assert all((path / "state" / f"rank{rank}.pt").stat().st_size in (30, 40) for rank in range(2))
        steps.append(counts["step"])
    assert steps == sorted(steps) and {*steps} == {20, 30}
    assert n > 8
    assert [p.name for p in sorted((tmp_path / str(n)).iterdir())] == ["001-00000020", "001-00000030"]
