"""A cluster that is not there, or that lets nobody in: the reason within seconds."""

import socket
import time

import pytest

from pipeline.cluster import join as join_
from pipeline.cluster.join import join
from pipeline.errors import InputError


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_where_nothing_answers(tmp_path, address):
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        address, began = address.format(taken.getsockname()[1]), time.monotonic()
        with pytest.raises(InputError, match=rf"^cluster\.address = '{address}': nothing answers there \(Connection"):
            join(address, {}, tmp_path / "ray.log")
    assert time.monotonic() - began < 10


def test_a_host_that_has_no_name(tmp_path):
    with pytest.raises(InputError, match=r"nothing answers there"):
        join("no-such-host.invalid:6379", {}, tmp_path / "ray.log")


@pytest.mark.parametrize(("said", "told"), [("Unauthenticated: token is missing", True), ("slow", False)])
def test_a_token_is_told_by_rays_log_alone(tmp_path, said, told):
    (tmp_path / "ray.log").write_text("x" * 100_000 + said, encoding="utf-8")
    assert join_._tells_of_a_token(tmp_path / "ray.log") == told
    assert not join_._tells_of_a_token(tmp_path / "none")
