"""The same folder on disk and in an object store (a real S3 server in a process of its own)."""

import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.store.cache import KEY, Cache
from pipeline.store.compaction import compact
from pipeline.store.folder import Folder


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The URI of an empty bucket."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=out, stderr=out)
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    for _ in range(200):
        try:
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"), timeout=5)
            break
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    yield "s3://bucket"
    patch.undo()
    server.terminate()
    server.wait()


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
    cache.used()
    assert time.time() - 60 < cache.last_used() <= time.time()


def test_a_uri_that_nothing_can_open():
    with pytest.raises(InputError, match="cannot open 'nosuch://bucket'"):
        Folder("nosuch://bucket")
