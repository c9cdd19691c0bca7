"""Settings that follow from the GPUs of a machine or cluster, where the configuration leaves them out."""

import pytest

from pipeline.cluster.capacity import Nodes
from pipeline.cluster.machine import machine_of
from pipeline.config import Config
from pipeline.config.machine import Machine
from tests.pipeline.files import config_file

EIGHT = Machine(8, 12)  # 96 CPUs


def settled(folder, *overrides, machine=EIGHT):
    return Config.load(config_file(folder), list(overrides)).settled(machine, machine)


def shown(config):
    cluster, reference = config.cluster, config.reference
    training = (cluster.workers, cluster.gpus_per_worker, cluster.cpus_per_worker)
    return *training, reference.actors, reference.gpus_per_actor, reference.cpus_per_actor, config.train.dtype


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (8, 1, 11, 8, 1, 11, "bfloat16")),
        (["train.dtype=float32"], (8, 1, 11, 8, 1, 11, "float32")),
        (["deepspeed.stage=0"], (8, 1, 11, 8, 1, 11, "float32")),
        (["cluster.workers=2", "reference.actors=3"], (2, 1, 11, 3, 1, 11, "bfloat16")),
        (["cluster.cpus_per_worker=4"], (8, 1, 4, 8, 1, 11, "bfloat16")),
        (["cluster.gpus_per_worker=0"], (1, 0, 1, 8, 1, 11, "float32")),
        (["reference.gpus_per_actor=0"], (8, 1, 11, 1, 0, 1, "bfloat16")),
        (["train.batch_pairs=4"], (4, 1, 11, 8, 1, 11, "bfloat16")),
        (["reference.mode=overlap"], (7, 1, 11, 1, 1, 11, "bfloat16")),
    ],
)
def test_what_is_left_out_follows_from_the_gpus(tmp_path, overrides, expected):
    assert shown(settled(tmp_path, *overrides)) == expected


def test_without_gpus_everything_is_as_it_stands(tmp_path):
    config = settled(tmp_path, machine=Machine(0))
    assert shown(config) == (1, 0, 1, 1, 0, 1, "float32")
    assert config.settled(EIGHT, EIGHT).train.dtype == "float32"  # a settled configuration stays as it is


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (1, 0, 16, 1, 0, 16)),
        (["cluster.workers=3", "reference.actors=4"], (3, 0, 5, 4, 0, 4)),
        (["cluster.workers=[1, 4]"], ([1, 4], 0, 4, 1, 0, 16)),
        (["cluster.cpus_per_worker=2"], (1, 0, 2, 1, 0, 16)),
        (["cluster.workers=32"], (32, 0, 1, 1, 0, 16)),
        (["reference.mode=overlap", "reference.actors=3"], (1, 0, 4, 3, 0, 4)),
    ],
)
def test_without_gpus_the_cores_are_shared_out(tmp_path, overrides, expected):
    assert shown(settled(tmp_path, *overrides, machine=Machine(0, cores=16)))[:-1] == expected


def test_settling_twice_changes_nothing(tmp_path):
    once = settled(tmp_path)
    assert once.settled(Machine(0), Machine(0)) == once


@pytest.mark.parametrize("machine", [EIGHT, Machine(0), Machine(8, 12, 80e9)])
def test_the_stage_is_the_usual_one_where_nothing_chooses(tmp_path, machine):
    """The choice itself needs the model's sizes: tests/pipeline/models/test_room.py."""
    assert settled(tmp_path, machine=machine).deepspeed.stage == 2
    assert settled(tmp_path, "deepspeed.offload_param=cpu", machine=machine).deepspeed.stage == 3
    assert settled(tmp_path, "deepspeed.stage=0", machine=machine).deepspeed.stage == 0
    assert settled(tmp_path, "cluster.workers=1", machine=machine).deepspeed.stage == (1 if machine.gpus else 2)


NODES = [
    Nodes("head", 1, {"CPU": 16.0}, {}),
    Nodes("scorers", 4, {"CPU": 16.0, "GPU": 1.0, "scorer": 1.0}, {"kind": "L4"}),
    Nodes("trainers", 2, {"CPU": 96.0, "GPU": 8.0, "trainer": 8.0}, {"kind": "A100"}),
]


@pytest.mark.parametrize(
    ("resources", "labels", "expected"),
    [
        ({}, {}, Machine(20, 12)),
        ({"trainer": 1}, {}, Machine(16, 12)),
        ({"scorer": 1}, {}, Machine(4, 16)),
        ({}, {"kind": "L4"}, Machine(4, 16)),
        ({"tpu": 1}, {}, Machine(0, 1)),
    ],
)
def test_the_gpus_of_a_cluster_are_those_of_fitting_nodes(resources, labels, expected):
    assert machine_of(NODES, resources, labels) == expected


def test_the_memory_of_a_cluster_is_that_of_its_smallest_known_card():
    def kind(name):
        return {"ray.io/accelerator-type": name}

    gpus = {"CPU": 8.0, "GPU": 2.0}
    large, small, other = (Nodes(name, 1, gpus, kind(name)) for name in ("H100", "A100-40G", "K80"))
    assert machine_of([large, small], {}, {}) == Machine(4, 4, 40e9)
    assert machine_of([large, small], {}, kind("H100")) == Machine(2, 4, 80e9)
    assert machine_of([large, other], {}, {}) == Machine(4, 4, None)
