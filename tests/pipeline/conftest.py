"""The line in one process, and a run of it, for all tests that take them."""

import pytest

from tests.pipeline.lab import SFT, Lab, made


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab") / "group")
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory):
    """A folder with a run that nothing disturbed."""
    folder = made(tmp_path_factory.mktemp("whole") / "lab")
    found = lab.line(folder, *SFT)
    assert found["steps"] == 6, found
    return folder
