"""Full disks, read-only folders, an object store that goes away: said, and nothing that was committed is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store.cache import Cache
from pipeline.store.folder import Folder
from tests.e2e.running import audited, ray_align, rows, summary
from tests.e2e.test_kills import PAIRS, fresh, start, wait_for
from tests.object_store import credentials, free_port, s3_server, way_to
from tests.pipeline.files import keys_in

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fresh(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, in memory, that `remount` changes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_disk_that_fills_up_while_scoring(folder: Path, disk: Path) -> None:
    remount(disk, "size=400k")
    cache = f"reference.cache={disk}/cache"
    done = ray_align("score", str(folder / "run.toml"), cache)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and str(disk) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    (where,) = (disk / "cache").iterdir()
    committed = len(keys_in(Cache(str(where))))
    assert 0 < committed < 2 * PAIRS
    remount(disk, "size=64m")
    assert ray_align("score", str(folder / "run.toml"), cache).returncode == 0
    found = summary(folder / "runs" / "killed")
    assert (found["sequences_reused"], found["sequences_scored"]) == (committed, 2 * PAIRS - committed)
    assert not (where / "damaged").exists()


def test_a_disk_that_fills_up_while_training(folder: Path, disk: Path) -> None:
    remount(disk, "size=6m")
    command = ("train", str(folder / "run.toml"), f"run.dir={disk}", "train.max_failures=0")
    done = ray_align(*command)
    assert done.returncode == 1
    assert "no checkpoint could be written" in done.stderr and str(disk) in done.stderr, done.stderr
    remount(disk, "size=256m")
    run = disk / "killed"
    assert ray_align(*command).returncode == 0
    first, second = rows(run / "checkpoints" / "attempts.jsonl")
    assert first["from_step"] == 0 and second["from_step"] >= 10
    lasting = {line["step"]: line["attempt"] for line in rows(run / "audit.jsonl")}
    assert sorted(lasting) == list(range(1, 101))
    assert len(audited(run)) >= 2 * PAIRS


def test_a_workspace_that_turns_read_only(folder: Path, disk: Path) -> None:
    command = ("score", str(folder / "run.toml"), f"run.workspace={disk}/workspace")
    assert ray_align(*command).returncode == 0
    remount(disk, "ro")
    more = [*(folder / "pairs.jsonl").read_text().splitlines(), '{"prompt": "more", "chosen": " a", "rejected": " b"}']
    (folder / "pairs.jsonl").write_text("\n".join(more), encoding="utf-8")
    done = ray_align(*command, "run.name=more")
    assert done.returncode in (1, 2)
    assert "Read-only file system" in done.stderr and str(disk) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    remount(disk, "rw")
    assert ray_align(*command, "run.name=more").returncode == 0
    found = summary(folder / "runs" / "more")
    assert (found["sequences_reused"], found["sequences_scored"]) == (2 * PAIRS, 2)


def test_a_cache_that_turns_read_only(folder: Path, disk: Path) -> None:
    (disk / "cache").mkdir()
    remount(disk, "ro")
    done = ray_align("score", str(folder / "run.toml"), f"reference.cache={disk}/cache")
    assert done.returncode in (1, 2)
    assert "Read-only file system" in done.stderr and str(disk) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_object_store_that_goes_away_while_scoring(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(folder / "s3.log") as target:
        port = free_port()
        for name, value in credentials(port).items():
            monkeypatch.setenv(name, value)
        cache = "reference.cache=s3://bucket/cache"
        with way_to(target, port):
            process = start(folder, "score", cache)
            wait_for(lambda: parts_at("s3://bucket/cache") > 5, process)
        assert process.wait(600) == 1
        said = (folder / "out.txt").read_text()
        assert "s3://bucket/cache" in said and "Traceback" not in said, said
        with way_to(target, port):
            done = ray_align("score", str(folder / "run.toml"), cache)
            assert done.returncode == 0, done.stderr
            found = summary(folder / "runs" / "killed")
            assert found["sequences_reused"] > 5 * 8
            assert found["sequences_reused"] + found["sequences_scored"] == 2 * PAIRS


def parts_at(where: str) -> int:
    store = Folder(where)
    return sum(len(Cache(f"{where}/{name}").parts()) for name in store.folders())
