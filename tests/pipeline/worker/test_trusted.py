"""Whose checkpoints are unpickled."""

import os

import pytest
import torch.distributed as dist

from pipeline.errors import InputError
from pipeline.worker.trusted import keep_to_myself, refuse_foreign
from tests.pipeline.worker.test_checkpoints import make

STRANGER = 12345


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)
    dist.destroy_process_group()


def places(folder):
    """Every file and folder of a checkpoint."""
    return [folder, *sorted(folder.rglob("*"))]


def test_my_own_are_taken(tmp_path):
    os.umask(0)
    keep_to_myself()
    refuse_foreign(tmp_path / "none yet")
    for path in places(make(tmp_path, 1, 10)):
        assert not path.stat().st_mode & 0o022
    refuse_foreign(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["001-00000010"]  # no trace of the look


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("number", range(5))
def test_what_others_may_write_is_refused(tmp_path, number, mode):
    make(tmp_path, 1, 10)
    changed = places(make(tmp_path, 1, 20))[number]
    changed.chmod(changed.stat().st_mode | mode)
    with pytest.raises(InputError, match=rf"{changed} may be written by others \(mode .*chmod -R go-w {tmp_path}"):
        refuse_foreign(tmp_path)
    changed.chmod(changed.stat().st_mode & ~0o022)
    refuse_foreign(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("number", range(5))
def test_what_is_somebody_elses_is_refused(tmp_path, number):
    changed = places(make(tmp_path, 1, 20))[number]
    os.chown(changed, STRANGER, -1)
    with pytest.raises(InputError, match=f"{changed} belongs to the user id {STRANGER}, not to 0.*Run as that user"):
        refuse_foreign(tmp_path)


def test_a_folder_without_a_manifest_is_not_read_and_not_refused(tmp_path):
    path = make(tmp_path, 1, 20)
    (path / "manifest.json").unlink()
    path.chmod(0o777)
    refuse_foreign(tmp_path)
