"""Nodes that come late, or never, without an autoscaler."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.cluster.connect import disconnect
from pipeline.errors import InputError
from pipeline.run import run
from tests.pipeline.cluster.apart import config_apart

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
    return config_apart(tmp_path, cluster.address)


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


@pytest.mark.parametrize("seconds", [5, pytest.param(90, marks=pytest.mark.long)])
def test_a_run_that_says_how_long_it_waits_goes_on_when_the_nodes_join(cluster, config, seconds):
    ray.shutdown()  # so that the run joins by itself, and judges the cluster

    with pytest.raises(InputError, match="the cluster has room for 0"):
        run(config, "train")
    with ThreadPoolExecutor(1) as thread:  # Ray starts nodes from the main thread only
        running = thread.submit(run, waiting(config, 4), "train")
        for name in ("scorer", "trainer"):
            time.sleep(seconds)
            cluster.add_node(num_cpus=2, resources={name: 1})
        assert running.result()["steps"] == 1
