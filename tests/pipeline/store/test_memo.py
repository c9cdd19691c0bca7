import json
import os

import pytest

from pipeline.store import memo as module
from pipeline.store.memo import Memo


@pytest.fixture
def patient(monkeypatch):
    """Files that a test has just written count as old."""
    monkeypatch.setattr(module, "YOUNG_SECONDS", -60.0)


def counting(calls):
    def compute(path):
        calls.append(path)
        return f"digest {len(calls)}"

    return compute


def test_a_digest_is_computed_once(tmp_path, patient):
    calls, file = [], tmp_path / "file"
    file.write_text("one")
    memo = Memo(tmp_path / "deep" / "digests.json")
    assert [memo.digest(file, "k", counting(calls)) for _ in range(3)] == ["digest 1"] * 3
    assert Memo(tmp_path / "deep" / "digests.json").digest(file, "k", counting(calls)) == "digest 1"  # another process
    assert calls == [file]


@pytest.mark.parametrize("change", ["size", "time", "size and time kept"])
def test_a_digest_is_computed_anew_when_the_file_changes(tmp_path, patient, change):
    calls, file = [], tmp_path / "file"
    file.write_text("one")
    os.utime(file, ns=(10**18, 10**18))
    memo = Memo(tmp_path / "digests.json")
    memo.digest(file, "k", counting(calls))
    file.write_text("longer" if change == "size" else "two")
    os.utime(file, ns=(10**18, 10**18 + (change == "time")))
    assert memo.digest(file, "k", counting(calls)) == "digest 2"


def test_a_folder_changes_with_any_of_its_files(tmp_path, patient):
    calls, folder = [], tmp_path / "model"
    folder.mkdir()
    (folder / "one").write_text("1")
    memo = Memo(tmp_path / "digests.json")
    compute = counting(calls)
    assert memo.digest(folder, "weights", compute) == memo.digest(folder, "weights", compute) == "digest 1"
    (folder / "two").write_text("2")
    assert memo.digest(folder, "weights", compute) == "digest 2"
    (folder / "two").rename(folder / "three")
    assert memo.digest(folder, "weights", compute) == "digest 3"
    assert memo.digest(folder, "another kind", compute) == "digest 4"


def test_half_a_memo_is_forgotten(tmp_path):
    (tmp_path / "digests.json").write_text('{"file:')
    (tmp_path / "file").write_text("one")
    digest = Memo(tmp_path / "digests.json").digest(tmp_path / "file")
    assert digest == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_a_young_file_is_not_trusted(tmp_path, monkeypatch):
    """It may change once more within the grain of its times; one that was old when it was digested is trusted."""
    calls, file = [], tmp_path / "file"
    file.write_text("one")
    memo = Memo(tmp_path / "digests.json")
    assert [memo.digest(file, "k", counting(calls)) for _ in range(2)] == ["digest 1", "digest 2"]
    monkeypatch.setattr(module, "YOUNG_SECONDS", -60.0)
    assert memo.digest(file, "k", counting(calls)) == "digest 2"


def test_a_file_that_changes_while_it_is_digested_is_not_remembered(tmp_path, patient):
    file, calls = tmp_path / "file", []
    file.write_text("one")

    def compute(path):
        calls.append(path)
        file.write_text(file.read_text() + "!")
        return f"digest {len(calls)}"

    memo = Memo(tmp_path / "digests.json")
    assert [memo.digest(file, "k", compute) for _ in range(2)] == ["digest 1", "digest 2"]


def test_any_flipped_bit_of_a_memo_is_as_before_or_forgotten(tmp_path, patient):
    file, path = tmp_path / "file", tmp_path / "digests.json"
    file.write_text("one")
    Memo(path).digest(file)
    whole, known = path.read_bytes(), Memo(path).known
    assert known
    for bit in range(0, 8 * len(whole), 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert Memo(path).known in (known, {})


def test_a_memo_of_an_older_version_is_forgotten(tmp_path, patient):
    file, path = tmp_path / "file", tmp_path / "digests.json"
    file.write_text("one")
    stat = file.stat()
    state = [["file", stat.st_size, stat.st_mtime_ns]]
    path.write_text(json.dumps({f"file:{file}": {"state": state, "digest": "another"}}))
    assert Memo(path).digest(file) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
