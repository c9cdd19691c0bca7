"""The same folder on disk and in an object store (a real S3 server in a process of its own)."""

import time

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.store.cache import KEY, Cache
from pipeline.store.compaction import compact
from pipeline.store.folder import Folder
from tests.object_store import credentials, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The URI of an empty bucket."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as port, pytest.MonkeyPatch.context() as patch:
        for name, value in credentials(port).items():
            patch.setenv(name, value)
        yield "s3://bucket"


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    if request.param == "disk":
        return Folder(str(tmp_path / "folder"))
    return Folder(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_what_is_written_is_there(folder):
    assert (folder.names(), folder.folders()) == ([], [])
    folder.write("b", b"two")
    folder.write("a", b"one")
    folder.below("deep").write("c", b"three")
    assert folder.names() == ["a", "b"]
    assert folder.folders() == ["deep"]
    assert (folder.read("b"), folder.sizes()["b"]) == (b"two", 3)
    assert folder.below("deep").read("c") == b"three"
    folder.write("b", b"again")
    assert folder.read("b") == b"again"


def test_moving_and_removing(folder):
    folder.write("a", b"one")
    folder.write("b", b"two")
    folder.move("a", "aside")
    assert folder.names() == ["b"]
    assert folder.below("aside").read("a") == b"one"
    folder.remove("b")
    folder.remove("b")  # gone already
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        folder.read("b")
    folder.remove_all()
    assert folder.folders() == []


def test_a_cache(folder):
    cache = Cache(folder.where)
    keys = [bytes([n]) * 16 for n in range(20)]
    for n in range(0, 20, 5):
        cache.write(keys[n : n + 5], [np.full(2, n, np.float32)] * 5)
    bad = cache.write([b"x" * 16], [np.zeros(1, np.float32)])
    folder.write(bad, folder.read(bad)[:-1])
    wanted = np.frombuffer(b"".join([*keys, b"x" * 16]), KEY)
    found = cache.find(wanted)
    assert found.have.tolist() == [True] * 20 + [False]
    assert found.damaged == [bad]
    assert compact(cache)[:4] == (4, 1, 20, 20)
    assert cache.find(wanted).have.tolist() == [True] * 20 + [False]
    assert cache.values(wanted[6:7])[keys[6]].tolist() == [5.0, 5.0]
    cache.used("reference")
    when, role = cache.last_use()
    assert time.time() - 60 < when <= time.time()
    assert role == "reference"


def test_a_uri_that_nothing_can_open():
    with pytest.raises(InputError, match="cannot open 'nosuch://bucket'"):
        Folder("nosuch://bucket")
