import json
import os

import pytest

from dpo.lm.whole_folder import describe, read_json, write_atomically
from pipeline.store.artifacts import MANIFEST, Memo, begin, commit, find, fingerprint
from tests.pipeline.crashes import every_crash

MADE_OF = {"stage": "x", "format": 1, "files": ["a", "b"]}


def make(folder):
    begin(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "one.txt").write_text("one")
    (folder / "two.txt").write_text("two!")
    return commit(folder, MADE_OF, {"rows": 2})


def test_what_was_committed_is_found(tmp_path):
    made = make(tmp_path / "a")
    assert find(tmp_path / "a", MADE_OF) == made
    assert made.counts == {"rows": 2}
    assert {name: entry["bytes"] for name, entry in made.files.items()} == {"sub/one.txt": 3, "two.txt": 4}
    # printf one | sha256sum
    assert made.files["sub/one.txt"]["sha256"] == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert made.paths() == [tmp_path / "a" / "sub" / "one.txt", tmp_path / "a" / "two.txt"]
    assert made.paths("sub/") == [tmp_path / "a" / "sub" / "one.txt"]
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["made_of"] == MADE_OF


def test_what_was_made_of_something_else_is_not_found(tmp_path):
    make(tmp_path / "a")
    assert find(tmp_path / "a", {**MADE_OF, "format": 2}) is None
    assert find(tmp_path / "a", {**MADE_OF, "files": ["b", "a"]}) is None
    assert find(tmp_path / "a", dict(reversed(MADE_OF.items()))) is not None  # the order of keys says nothing


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "a folder", "no manifest", "half a manifest"])
def test_an_incomplete_artifact_is_not_found(tmp_path, damage):
    folder = tmp_path / "a"
    make(folder)
    file, manifest = folder / "sub" / "one.txt", folder / MANIFEST
    if damage in ("missing", "a folder"):
        file.unlink()
    if damage == "a folder":
        file.mkdir()
    if damage in ("shorter", "longer"):
        file.write_text("on" if damage == "shorter" else "one more")
    if damage == "no manifest":
        manifest.unlink()
    if damage == "half a manifest":
        manifest.write_bytes(manifest.read_bytes()[:100])
    assert find(folder, MADE_OF) is None


def test_there_is_nothing_in_no_folder_and_in_no_file(tmp_path):
    assert find(tmp_path / "none", MADE_OF) is None
    (tmp_path / "file").write_text("x")
    assert find(tmp_path / "file", MADE_OF) is None


def test_files_that_the_manifest_does_not_name_are_not_looked_at(tmp_path):
    made = make(tmp_path / "a")
    (tmp_path / "a" / "stray.txt").write_text("left by somebody")
    assert find(tmp_path / "a", MADE_OF) == made


def test_begin_empties_the_folder(tmp_path):
    make(tmp_path / "a")
    assert begin(tmp_path / "a") == tmp_path / "a"
    assert list((tmp_path / "a").iterdir()) == []
    assert list(begin(tmp_path / "new" / "below").iterdir()) == []


def test_a_crash_before_the_manifest_leaves_nothing_to_be_found(tmp_path):
    make(tmp_path / "a")
    begin(tmp_path / "a")
    (tmp_path / "a" / "two.txt").write_text("two!")  # and no commit
    assert find(tmp_path / "a", MADE_OF) is None


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, '{"a": 1}')
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, '{"a": "\ud800"}')  # cannot be written
    assert read_json(path) == {"a": 1}
    write_atomically(path, '{"a": 2}')
    assert read_json(path) == {"a": 2}


def test_a_fingerprint_is_short_and_of_the_content():
    assert len(fingerprint(MADE_OF)) == 16
    assert int(fingerprint(MADE_OF), 16)
    assert len({fingerprint({"a": value}) for value in (1, "1", None, [1], 1.5)}) == 5


# Digests that are remembered


def counting(calls):
    def compute(path):
        calls.append(path)
        return f"digest {len(calls)}"

    return compute


def test_a_digest_is_computed_once(tmp_path):
    calls, file = [], tmp_path / "file"
    file.write_text("one")
    memo = Memo(tmp_path / "deep" / "digests.json")
    assert [memo.digest(file, "k", counting(calls)) for _ in range(3)] == ["digest 1"] * 3
    assert Memo(tmp_path / "deep" / "digests.json").digest(file, "k", counting(calls)) == "digest 1"  # another process
    assert calls == [file]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_digest_is_computed_anew_when_the_file_changes(tmp_path, change):
    calls, file = [], tmp_path / "file"
    file.write_text("one")
    os.utime(file, ns=(10**18, 10**18))
    memo = Memo(tmp_path / "digests.json")
    memo.digest(file, "k", counting(calls))
    file.write_text("longer" if change == "size" else "two")
    os.utime(file, ns=(10**18, 10**18 + (change == "time")))
    assert memo.digest(file, "k", counting(calls)) == "digest 2"


def test_a_folder_changes_with_any_of_its_files(tmp_path):
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


# Crashes


@pytest.mark.parametrize("cut", [False, True])
def test_a_crash_anywhere_leaves_the_old_artifact_or_the_new_one_or_none(tmp_path, monkeypatch, cut):
    old, new = {"v": "old"}, {"v": "new"}

    def write(folder, made_of):
        begin(folder)
        for name in ("one", "two"):
            with (folder / name).open("w") as file:
                file.write(made_of["v"] * 10)
        return commit(folder, made_of, {})

    for n in range(100):
        write(tmp_path / str(n), old)
    n = 0
    for n in every_crash(monkeypatch, lambda n: write(tmp_path / str(n), new), cut):
        found = {made_of["v"]: find(tmp_path / str(n), made_of) for made_of in (old, new)}
        for value, artifact in found.items():
            if artifact is not None:
                assert [path.read_text() for path in artifact.paths()] == [value * 10] * 2
                assert {p.name: describe(p) for p in artifact.paths()} == artifact.files
        assert None in found.values()
        assert write(tmp_path / str(n), new).files.keys() == {"one", "two"}  # and it can be done again
    assert find(tmp_path / str(n), new) is not None
    assert n > 8
