"""The look at every node of a cluster before the first stage."""

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.cluster import nodes
from pipeline.cluster.nodes import _look, _problems, check_nodes
from pipeline.errors import InputError
from tests.pipeline.files import jsonl

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def test_what_is_missing_on_a_node_is_named(tmp_path):
    here = _look([], [])
    there = _look([str(tmp_path / ".seen")], [str(tmp_path / "none.jsonl")])
    there["versions"] = here["versions"] | {"torch": "1.0", "deepspeed": None}
    there["unwritable"] = ["/mnt/readonly"]
    assert _problems(here, here) == []
    assert _problems(there, here) == [
        f"torch is 1.0, and {here['versions']['torch']} where the run starts; install the same",
        f"deepspeed is not installed, and {here['versions']['deepspeed']} where the run starts; install the same",
        f"does not see this run's {tmp_path}; name a folder that all nodes share (run.dir, run.workspace)",
        "cannot write to /mnt/readonly",
        f"cannot read {tmp_path / 'none.jsonl'}; put it where all nodes see it",
    ]


@pytest.fixture
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_every_node_is_asked(two_nodes, tmp_path, monkeypatch):
    jsonl(tmp_path / "pairs.jsonl", [PAIR])
    folders = [tmp_path / "run", tmp_path / "workspace"]
    for folder in folders:
        folder.mkdir()
    files = [str(tmp_path / "pairs.jsonl")]
    check_nodes(folders, files)
    assert not [found for folder in folders for found in folder.glob(".seen*")]
    monkeypatch.setattr(nodes, "_version", lambda package: "0.1 of " + package)  # here; the nodes look for themselves
    with pytest.raises(InputError) as error:
        check_nodes(folders, files)
    said = f"ray is {ray.__version__}, and 0.1 of ray where the run starts; install the same"
    assert str(error.value).count(said) == 2
