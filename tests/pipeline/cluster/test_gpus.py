"""The look at the GPUs of every node: made-up answers are judged, and a node without a real GPU is refused."""

import math
from collections.abc import Iterator

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from pipeline.cluster.connect import disconnect
from pipeline.cluster.gpus import Answer, _problems, driver_in, look, product
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.place import Place
from pipeline.run import run
from tests.pipeline.files import config_file, jsonl

GOOD = Answer(
    driver="580.126.09",
    torch="2.13.0+cu130",
    cuda="13.0",
    disk=500 * 10**9,
    shm=64 * 10**9,
    card="NVIDIA A100-SXM4-40GB",
    capability=(8, 0),
    memory=40 * 2**30,
    free=39 * 2**30,
    error=0.0017,
    teraflops=250.0,
    cudnn=91300,
    nccl="2.28.9",
)
L4 = GOOD._replace(card="NVIDIA L4", capability=(8, 9), teraflops=80.0)


def judged(*answers, dtype="bfloat16", trainers=None):
    named = dict(zip("abcd", answers, strict=False))
    found = _problems(named, dtype, set(named) if trainers is None else set(trainers))
    assert isinstance(found, Iterator)
    return list(found)


# Answers


def test_good_nodes_are_taken():
    assert judged(GOOD, GOOD._replace(teraflops=150.0, free=38 * 2**30)) == []
    assert judged() == []


def test_a_driver_older_than_the_wheel_wants():
    old = GOOD._replace(driver="535.104.05", card=None)  # torch then sees no GPU
    assert judged(GOOD, old) == [
        "node b: NVIDIA driver 535.104.05 is older than 580, which torch 2.13.0+cu130 (CUDA 13.0) needs; take a "
        "machine image with a newer driver, or a torch wheel of an older CUDA"
    ]
    assert judged(GOOD._replace(driver="535.104.05", torch="2.13.0+cu129", cuda="12.9")) == []
    assert "older than 525" in judged(GOOD._replace(driver="470.82.01", cuda="12.9"))[0]
    assert judged(GOOD._replace(driver=None)) == []  # a machine that does not say


def test_a_torch_that_sees_no_gpu():
    (problem,) = judged(GOOD._replace(torch="2.13.0+cpu", cuda=None, card=None))
    assert problem == "node a: torch 2.13.0+cpu is built for CPUs alone; install the wheel for CUDA"
    (problem,) = judged(GOOD._replace(card=None))
    assert problem.startswith("node a: torch.cuda.is_available() is false, though Ray counts GPUs there")


def test_a_card_without_bfloat16():
    t4 = GOOD._replace(card="Tesla T4", capability=(7, 5))
    assert judged(t4) == [
        'node a: Tesla T4 has capability 7.5, and bfloat16 needs 8.0; set train.dtype = "float32", or use other cards'
    ]
    assert judged(t4, dtype="float32") == []


def test_mixed_cards_may_score_and_not_train():
    assert judged(GOOD, L4, GOOD, trainers="ac") == []
    (problem,) = judged(GOOD, L4, GOOD)
    assert problem == (
        "the card differs: NVIDIA A100-SXM4-40GB on node a, c; NVIDIA L4 on node b; let training use one kind of node "
        "(cluster.resources or cluster.labels)"
    )


def test_versions_that_differ():
    assert judged(GOOD, GOOD._replace(nccl="2.27.3"), L4) == [
        "NCCL differs: 2.28.9 on node a, c; 2.27.3 on node b; use one image on all nodes",
        "the card differs: NVIDIA A100-SXM4-40GB on node a, b; NVIDIA L4 on node c; let training use one kind of node "
        "(cluster.resources or cluster.labels)",
    ]
    assert judged(GOOD, L4._replace(cudnn=90100), trainers="a") == [
        "cuDNN differs: 91300 on node a; 90100 on node b; use one image on all nodes"
    ]


def test_too_little_of_what_a_container_is_given():
    assert judged(GOOD, GOOD._replace(shm=2 * 10**9)) == [
        "node b: /dev/shm has 2.0 GB, 4 are needed; give the container more (docker: --shm-size, Kubernetes: a "
        "volume in memory)"
    ]
    assert judged(GOOD._replace(disk=10**9)) == [
        "node a: 1.0 GB of the temporary folder's disk are free, 10 are needed"
    ]


@pytest.mark.parametrize("error", [0.02, math.inf, math.nan])
def test_a_card_that_computes_wrong(error):
    (problem,) = judged(GOOD, GOOD._replace(error=error))
    assert problem.startswith(f"node b: bfloat16 products are off by {error:.2g}, ")


def test_a_card_that_is_slower_than_its_like():
    assert judged(GOOD, L4, trainers="a") == []
    assert judged(GOOD, GOOD._replace(teraflops=120.0)) == [
        "node b: its NVIDIA A100-SXM4-40GB computes 120 TFLOP/s, another one 250; is it throttled, or used by someone "
        "else?"
    ]


def test_a_card_that_is_used_outside_of_ray():
    assert judged(GOOD._replace(free=30 * 2**30)) == [
        "node a: 10.0 GiB of a GPU that Ray thinks is free are used; end the other processes (see nvidia-smi)"
    ]


# Looking


def test_an_answer_survives_its_file():
    assert Answer.of_json({**GOOD._asdict(), "capability": [8, 0]}) == GOOD


@pytest.mark.parametrize(
    ("said", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n", "580.82.07"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  595.91  Release Build\n", "595.91"),
        ("", None),
    ],
)
def test_the_driver_is_read(said, driver):
    assert driver_in(said) == driver


def test_the_product_in_bfloat16():
    """Its result is rounded to 8 bits: by at most 2**-8 of a number, and by about a third of that on average."""
    error, teraflops = product(torch.device("cpu"), 64)
    assert 0.0005 < error < 2**-8
    assert teraflops > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPUs says")
def test_a_machine_without_gpus_is_looked_at():
    answer = look()
    assert (answer.card, answer.capability, answer.nccl) == (None, (0, 0), "")
    assert answer.torch == torch.__version__
    assert answer.shm > 0 < answer.disk


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="Ray is told of GPUs that are not there")
def test_a_node_whose_gpus_cannot_be_used_is_named(tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    node = cluster.add_node(num_cpus=1, num_gpus=2)
    pairs = [{"prompt": "p", "chosen": "c", "rejected": "r"}]
    asked = {
        "run": {"dir": str(tmp_path / "runs"), "workspace": str(tmp_path / "workspace")},
        "data": {"train": str(jsonl(tmp_path / "pairs.jsonl", pairs))},
        "cluster": {"address": cluster.address, "gpus_per_worker": 1},
        "reference": {"gpus_per_actor": 0},
    }
    config = Config.load(config_file(tmp_path, **asked))
    try:
        with pytest.raises(InputError) as error:
            run(config, "prepare")
        (line,) = str(error.value).splitlines()[1:]
        assert line.startswith(f"node {ray.util.get_node_ip_address()} ({node.node_id[:8]}): torch ")
        assert not (Place.of(config).run_dir / "nodes.json").exists()  # it is asked again, once it is mended
        assert run(
            config.model_copy(update={"cluster": config.cluster.model_copy(update={"gpus_per_worker": 0})}), "prepare"
        )
    finally:
        disconnect()
        cluster.shutdown()
