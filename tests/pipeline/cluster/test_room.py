"""Nodes that never come end the run with a sentence. (Those that come late are in test_autoscaler.py.)"""

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.cluster.connect import disconnect
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.run import run
from tests.pipeline.files import config_file, jsonl

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster():
    """A head without what scorers and trainers ask for. The test itself joins it, so that nothing is judged."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    disconnect()
    cluster.shutdown()


@pytest.fixture
def config(cluster, tmp_path):
    pairs = [{"prompt": f"say {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}"} for i in range(12)]
    path = config_file(
        tmp_path,
        run={"dir": str(tmp_path / "runs"), "workspace": str(tmp_path / "workspace")},
        data={"train": str(jsonl(tmp_path / "pairs.jsonl", pairs)), "max_length": 64},
        policy={"kind": "x-transformers", "dim": 16, "depth": 1, "heads": 2},
        reference={"resources": {"scorer": 1.0}},
        cluster={"address": cluster.address, "resources": {"trainer": 1.0}},
    )
    return Config.load(path)


def waiting(config, minutes):
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"start_minutes": minutes})})


@pytest.mark.parametrize(("nodes", "key"), [([], "reference.actors"), (["scorer"], "cluster.workers")])
def test_nodes_that_never_come_end_the_run_with_a_sentence(cluster, config, nodes, key):
    for name in nodes:
        cluster.add_node(num_cpus=1, resources={name: 1})
    with pytest.raises(InputError) as error:
        run(waiting(config, 0.05), "train")
    asked = f"{key} = 1, each with CPU 1, {'trainer' if nodes else 'scorer'} 1"
    assert str(error.value).startswith(
        f"{asked}: no room within cluster.start_minutes = 0.05. The nodes that are there: "
    )
    assert "raise cluster.start_minutes" in str(error.value)
