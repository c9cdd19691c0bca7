import json
import os

import pytest

from dpo.lm.whole_folder import describe, read_json, write_atomically
from pipeline.errors import InputError, RunError
from pipeline.store.artifacts import MAKER, MANIFEST, begin, commit, find, fingerprint, seal, take_up, take_whole
from pipeline.store.owner import Owner
from pipeline.store.records import own_digest
from tests.pipeline.crashes import every_crash

MADE_OF = {"stage": "x", "format": 1, "files": ["a", "b"]}


def filled(folder):
    """A folder in which an artifact is about to be whole."""
    own = begin(folder)
    (own / "sub").mkdir()
    (own / "sub" / "one.txt").write_text("one")
    (own / "two.txt").write_text("two!")
    return own


def make(folder):
    return commit(filled(folder), folder, MADE_OF, {"rows": 2})


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


def test_an_artifact_is_made_beside_what_is_there(tmp_path):
    made = make(tmp_path / "a")
    own = begin(tmp_path / "a")
    assert own.parent == tmp_path and own.name.startswith("a.")
    assert [path.name for path in own.iterdir()] == [MAKER]
    assert find(tmp_path / "a", MADE_OF) == made
    assert begin(tmp_path / "new" / "below").parent == tmp_path / "new"


def test_another_content_takes_the_place_and_leaves_nothing_beside(tmp_path):
    make(tmp_path / "a")
    own = begin(tmp_path / "a")
    (own / "three.txt").write_text("3")
    commit(own, tmp_path / "a", {"v": 2}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [MANIFEST, "three.txt"]


def test_the_first_of_two_wins_and_the_other_uses_it(tmp_path):
    first, second = filled(tmp_path / "a"), filled(tmp_path / "a")
    made = commit(first, tmp_path / "a", MADE_OF, {"rows": 2})
    before = (tmp_path / "a" / MANIFEST).stat().st_ino
    assert commit(second, tmp_path / "a", MADE_OF, {"rows": 3}) == made
    assert (tmp_path / "a" / MANIFEST).stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_leads_to_the_place(tmp_path):
    """Its target is filled, whether it is there or not; the link stays."""
    for name in ("there", "not there"):
        (tmp_path / "disk" / "there").mkdir(parents=True, exist_ok=True)
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / "disk" / name)
        make(link)
        assert link.is_symlink() and find(link, MADE_OF).folder == link
        assert find(tmp_path / "disk" / name, MADE_OF) is not None


@pytest.mark.parametrize("change", ["dropped", "added", "changed"])
def test_files_that_are_not_as_their_writers_say_are_not_committed(tmp_path, change):
    own = filled(tmp_path / "a")
    written = {name: describe(own / name) for name in ("sub/one.txt", "two.txt")}
    if change == "dropped":
        (own / "two.txt").unlink()
    else:
        (own / ("two.txt" if change == "changed" else "sub/three.txt")).write_text("two?")
    with pytest.raises(RunError, match=r"(two|three)\.txt is not what was written there a moment ago"):
        commit(own, tmp_path / "a", MADE_OF, {"rows": 2}, written)
    assert find(tmp_path / "a", MADE_OF) is None


def test_every_bit_of_a_file_is_looked_at_when_it_is_taken_up(tmp_path):
    for bit in range(8 * 4):
        folder, said = tmp_path / str(bit) / "a", []
        made = make(folder)
        assert take_up(folder, MADE_OF, said.append) == made and said == []
        (folder / "two.txt").write_bytes((int.from_bytes(b"two!", "big") ^ (1 << bit)).to_bytes(4, "big"))
        with pytest.raises(InputError, match=r"two\.txt is damaged or was changed .* Move it\.$"):
            take_whole(folder, MADE_OF, "Move it.")
        assert take_up(folder, MADE_OF, said.append) is None
        assert len(said) == 1 and "two.txt is damaged" in said[0]
        assert make(folder) == made
        assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "a.damaged"]


def left_by(folder, pid, started):
    own = filled(folder)
    (own / MAKER).write_text(json.dumps(Owner.me()._replace(pid=pid, started=started)._asdict()))
    return own


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_makes_is_not(tmp_path):
    mine, dead = filled(tmp_path / "a"), left_by(tmp_path / "a", os.getpid(), "another start of this id")
    others = filled(tmp_path / "ab")
    begin(tmp_path / "a")
    assert mine.exists() and others.exists() and not dead.exists()


def test_one_that_a_look_up_put_in_its_place_meanwhile_is_committed(tmp_path):
    own = filled(tmp_path / "a")
    seal(own, MADE_OF, {"rows": 2})
    looked_up = find(tmp_path / "a", MADE_OF)
    assert looked_up is not None and not own.exists()
    with pytest.raises(FileNotFoundError):
        commit(own, tmp_path / "b", MADE_OF, {"rows": 2})
    assert commit(own, tmp_path / "a", MADE_OF, {"rows": 2}) == looked_up


def test_a_whole_artifact_that_did_not_get_to_its_place_is_moved_there(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.0123456789abcdef")
    assert find(tmp_path / "a", {"v": 2}) is None
    assert find(tmp_path / "a", MADE_OF).counts == {"rows": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# Manifests


def test_any_flipped_bit_of_a_manifest_is_as_before_or_not_there(tmp_path):
    made = make(tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert find(tmp_path / "a", MADE_OF) in (made, None)


VALUES = [None, True, 0, -1.5, "x", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("digest", [True, False], ids=["with a digest", "of an older version"])
def test_any_value_in_a_manifest_is_not_there(tmp_path, digest):
    make(tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    content = json.loads(path.read_text())
    for value in VALUES:
        for key in (None, *content):
            changed = value if key is None else {**content, key: value}
            if isinstance(changed, dict):
                changed = changed | {"sha256": own_digest(changed)} if digest else without_digest(changed)
            path.write_text(json.dumps(changed))
            if key in ("counts", "made_of") and isinstance(value, dict):
                continue  # of which nothing is known here
            if key == "sha256" or (key == "files" and value == {}):
                continue
            assert find(tmp_path / "a", MADE_OF) is None, (key, value)


def without_digest(content):
    return {key: value for key, value in content.items() if key != "sha256"}


def test_a_manifest_of_an_older_version_has_no_digest_of_itself(tmp_path):
    made = make(tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    path.write_text(json.dumps(without_digest(json.loads(path.read_text()))))
    assert find(tmp_path / "a", MADE_OF) == made


def test_a_crash_before_the_manifest_leaves_nothing_to_be_found(tmp_path):
    filled(tmp_path / "a")
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


# Crashes


@pytest.mark.parametrize("cut", [False, True])
def test_a_crash_anywhere_leaves_the_old_artifact_or_the_new_one(tmp_path, monkeypatch, cut):
    old, new = {"v": "old"}, {"v": "new"}

    def write(folder, made_of):
        own = begin(folder)
        for name in ("one", "two"):
            with (own / name).open("w") as file:
                file.write(made_of["v"] * 10)
        return commit(own, folder, made_of, {})

    for n in range(100):
        write(tmp_path / str(n), old)
    n = 0
    for n in every_crash(monkeypatch, lambda n: write(tmp_path / str(n), new), cut):
        found = {made_of["v"]: find(tmp_path / str(n), made_of) for made_of in (new, old)}
        for value, artifact in found.items():
            if artifact is not None:
                assert [path.read_text() for path in artifact.paths()] == [value * 10] * 2
                assert {p.name: describe(p) for p in artifact.paths()} == artifact.files
        assert {value is None for value in found.values()} == {True, False}  # never neither
        assert write(tmp_path / str(n), new).files.keys() == {"one", "two"}  # and it can be done again
        assert find(tmp_path / str(n), new) is not None
    assert n > 8
