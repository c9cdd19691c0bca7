"""A name stands for its content: what was made under it is not lost, and what was digested is what is trained on."""

import hashlib
import json
import os
import shutil

import pytest

from pipeline.run import run
from pipeline.stages import prepare, train
from pipeline.store.lease import Lease, take
from tests.pipeline.lab import config, copied, made, place_of, row, run_line, without_ray, write_rows

pytestmark = pytest.mark.group


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory):
    folder = made(tmp_path_factory.mktemp("whole") / "lab")
    assert lab.line(folder)["steps"] == 6
    return folder


@pytest.fixture
def finished(whole, tmp_path):
    return copied(whole, tmp_path / "lab")


def digests(run_dir):
    names = ("export/model.safetensors", "weights/model.safetensors", "metrics.jsonl", "audit.jsonl", "summary.json")
    return {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in names}


def add_row(folder):
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(row(900)) + "\n")


def restarted(folder):
    os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
    without_ray()
    return run(config(folder), restart=True)


def test_other_data_under_a_name_are_refused_and_nothing_is_touched(lab, finished):
    before = digests(finished / "runs/base")
    add_row(finished)
    said = lab.line(finished)
    assert said.startswith("InputError: run.name = 'base' stands for other contents; changed since it began: data (")
    assert "train.jsonl" in said and "--restart" in said
    assert digests(finished / "runs/base") == before
    assert lab.line(finished, "run.name=other")["pairs_used"] == 61


def test_begun_anew_with_other_data_the_old_export_is_kept(lab, finished):
    before = digests(finished / "runs/base")
    add_row(finished)
    assert lab.call(restarted, finished)["pairs_used"] == 61
    assert digests(finished / "runs/base/earlier/1") == before
    assert digests(finished / "runs/base") != before


def test_a_run_of_an_older_version_says_the_same_by_its_tokens(lab, finished):
    (finished / "runs/base/inputs.json").unlink()
    assert isinstance(lab.line(finished), dict)
    (finished / "runs/base/inputs.json").unlink()
    add_row(finished)
    assert "stands for other contents" in lab.line(finished)


def newer(folder, stop_at):
    train.FORMAT_VERSION += 1
    try:
        return run_line(folder, (), "export", stop_at)
    finally:
        train.FORMAT_VERSION -= 1


def test_finished_weights_of_an_older_format_are_finished(lab, finished):
    before = digests(finished / "runs/base")
    assert isinstance(lab.call(newer, finished, 0), dict)
    after = digests(finished / "runs/base")
    assert [name for name in before if before[name] != after[name]] == ["summary.json"]


def test_a_second_command_of_a_name_is_refused(lab, finished):
    lease = take(finished / "runs/base/lease.json", print)
    assert isinstance(lease, Lease)
    assert lab.line(finished).startswith("InputError: run.name = 'base' is being worked on by process ")
    lease.release()
    assert isinstance(lab.line(finished), dict)


def taken_over(folder):
    """The fourth step begins, and another command takes the run over."""
    steps = []

    def swapped(*arguments):
        steps.append(1)
        if len(steps) == 3:
            path = place_of(folder).run_dir / "lease.json"
            path.write_text(path.read_text().replace('"token": "', '"token": "x'))
        return real(*arguments)

    from pipeline.worker import loop

    real, loop._optimizer_step = loop._optimizer_step, swapped
    try:
        return run_line(folder, (), "export", None)
    finally:
        loop._optimizer_step = real


def test_workers_whose_run_was_taken_over_save_nothing_more(lab, tmp_path):
    folder = made(tmp_path / "lab")
    assert "Another command has taken over this run" in lab.call(taken_over, folder)
    saved = sorted(path.name for path in (folder / "runs/base/checkpoints").glob("0*"))
    assert saved == ["001-00000002"]
    (folder / "runs/base/lease.json").unlink()
    assert lab.line(folder)["steps"] == 6


def turned(rows):
    return [{**each, "chosen": each["rejected"], "rejected": each["chosen"]} for each in rows]


def test_a_file_of_the_same_size_and_time_is_another_file(lab, tmp_path):
    folder = made(tmp_path / "lab")
    path = folder / "train.jsonl"
    lab.line(folder, "run.name=before", until="prepare")
    stat = path.stat()
    write_rows(path, turned([row(i) for i in range(48)]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    lab.line(folder, "run.name=after", until="prepare")
    assert len(list((folder / "workspace/tokens").iterdir())) == 2


def changed_while_read(folder):
    real = prepare.begin

    def begin(place):
        write_rows(folder / "train.jsonl", turned([row(i) for i in range(48)]))
        return real(place)

    prepare.begin = begin
    try:
        return run_line(folder, (), "prepare", None)
    finally:
        prepare.begin = real


def test_a_file_that_changes_while_it_is_read_makes_nothing(lab, tmp_path):
    folder = made(tmp_path / "lab")
    said = lab.call(changed_while_read, folder)
    assert said.startswith("InputError: ") and "train.jsonl was changed while it was read" in said
    assert list((folder / "workspace/tokens").glob("*/manifest.json")) == []


def test_what_was_not_completed_makes_room(lab, finished):
    root = finished / "runs/base/checkpoints"
    for name in ("002-00000007", "003-00000007"):
        shutil.copytree(root / "001-00000006", root / name)
        (root / name / "manifest.json").unlink()
    shutil.copytree(root / "001-00000006", root / "002-00000006.universal")
    for name in ("weights", "evaluation", "export"):
        shutil.rmtree(finished / "runs/base" / name)
    assert lab.line(finished)["steps"] == 6
    assert sorted(path.name for path in root.glob("0*")) == ["001-00000004", "001-00000006"]


def watched(folder):
    """Run the line; the inodes of all that was synced."""
    synced, real = set(), os.fsync

    def fsync(descriptor):
        real(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    os.fsync = fsync
    try:
        run_line(folder, ("sft.epochs=1", "sft.batch_pairs=16"), "export", None)
    finally:
        os.fsync = real
    return synced


def test_all_that_a_manifest_names_is_on_the_disk_and_so_are_the_names(lab, tmp_path):
    folder = made(tmp_path / "lab")
    synced = lab.call(watched, folder)
    manifests = [path for path in folder.rglob("manifest.json") if "xdg" not in path.parts]
    assert len(manifests) == 9
    for manifest in manifests:
        named = [manifest.parent / name for name in json.loads(manifest.read_text())["files"]]
        missing = [path for path in (manifest, manifest.parent, *named) if path.stat().st_ino not in synced]
        assert missing == []
