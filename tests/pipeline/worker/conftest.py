"""What the jobs of this folder run on and train with."""

import pytest

from tests.pipeline.worker.group import Groups
from tests.pipeline.worker.small_run import LLAMA, cached, epochs_of, make_rows, model_folder


@pytest.fixture(scope="session")
def groups(tmp_path_factory):
    """Process groups that the tests share: starting one takes longer than most jobs."""
    groups = Groups(tmp_path_factory.mktemp("groups"))
    yield groups
    groups.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "llama", LLAMA)


@pytest.fixture(scope="session")
def epochs(model):
    """Two epochs of five steps of four pairs."""
    return epochs_of(cached(model, make_rows(20, 0)), [4] * 5, 2)


@pytest.fixture(scope="session")
def held_out(model):
    return epochs_of(cached(model, make_rows(8, 2)), [8], 1)[0]
