"""What every test starts from."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models here are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
