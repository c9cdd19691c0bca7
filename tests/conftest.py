"""What every test starts from, and what it may start."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

SEEN = pytest.StashKey[set[Path]]()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models here are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def folder_of_ray():
    """Ray, in this process or one that a test starts, keeps its files in a folder that no other session uses.

    Its name is short, since sockets are in it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ra", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        yield


def sessions_of_ray():
    """The folder of every Ray that was started since the tests began."""
    return set(Path(os.environ.get("RAY_TMPDIR", os.devnull)).glob("ray/session_2*"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[SEEN] = sessions_of_ray()  # before the fixtures, which may start it, too
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item):
    """Fail a test that started Ray without saying so: marks decide what runs together, and how long it may take."""
    started = sessions_of_ray() - item.stash[SEEN]
    yield
    if item.get_closest_marker("ray") is None and started:
        pytest.fail(f"{len(started)} Ray was started: mark the test `ray`", pytrace=False)
