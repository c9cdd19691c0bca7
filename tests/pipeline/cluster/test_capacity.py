"""What a cluster can never hold is refused before anything waits for it."""

import math

import pytest

from pipeline.cluster.capacity import Nodes, judge, refuse_impossible, requests
from pipeline.cluster.connect import missing_gpus, refuse_missing_gpus
from pipeline.config import Config
from pipeline.errors import InputError
from tests.pipeline.files import config_file

HEAD = Nodes("head", 1, {"CPU": 4, "memory": 1e9, "node:head": 1}, {})


def config(tmp_path, **sections):
    return Config.load(config_file(tmp_path, **sections))


def test_what_is_asked_for(tmp_path):
    given = config(
        tmp_path,
        reference={"actors": 3, "gpus_per_actor": 1, "resources": {"scorer": 1.0}, "labels": {"kind": "L4"}},
        cluster={"workers": [2, 4], "cpus_per_worker": 8, "resources": {"trainer": 0.5}},
    )
    assert requests(given) == [
        ("reference.actors", 3, {"CPU": 1, "GPU": 1, "scorer": 1.0}, {"kind": "L4"}),
        ("cluster.workers", 2, {"CPU": 8, "GPU": 0, "trainer": 0.5}, {}),
    ]


@pytest.mark.parametrize(
    ("asked", "nodes", "complaint"),
    [
        ({"workers": 2}, [HEAD], None),
        ({"workers": 2, "cpus_per_worker": 2}, [HEAD], "the run needs 6 CPUs at a time and the cluster has 4: "),
        (
            {"workers": 2, "cpus_per_worker": 3},
            [HEAD],
            "cluster.workers = 2, each with CPU 3: the cluster has room for 1.",
        ),
        ({"workers": 2, "cpus_per_worker": 3}, [HEAD, HEAD], None),
        ({"workers": [1, 9], "cpus_per_worker": 3}, [HEAD], None),
        ({"workers": 1, "cpus_per_worker": 6}, [HEAD, HEAD], "room for 0"),  # twelve CPUs, and none of them together
        ({"workers": 2, "gpus_per_worker": 1}, [HEAD], "each with CPU 1, GPU 1: the cluster has room for 0"),
        ({"workers": 2, "gpus_per_worker": 1}, [HEAD, Nodes("g", 1, {"CPU": 8, "GPU": 2}, {})], None),
        ({"workers": 4, "gpus_per_worker": 1}, [HEAD, Nodes("g", 2, {"CPU": 8, "GPU": 2}, {})], None),
        ({"workers": 99, "gpus_per_worker": 1}, [HEAD, Nodes("g", math.inf, {"CPU": 8, "GPU": 2}, {})], None),
        (
            {"workers": 1, "resources": {"trainer": 1.0}},
            [HEAD],
            "each with CPU 1, trainer 1: the cluster has room for 0",
        ),
        ({"workers": 1, "resources": {"trainer": 1.0}}, [HEAD, Nodes("t", 1, {"CPU": 1, "trainer": 1}, {})], None),
        (
            {"workers": 1, "labels": {"kind": "A100"}},
            [HEAD._replace(labels={"kind": "L4"})],
            "each with CPU 1 on a node labelled kind=A100: the cluster has room for 0",
        ),
        ({"workers": 1, "labels": {"kind": "in(A100, L4)"}}, [HEAD._replace(labels={"kind": "L4"})], None),
    ],
)
def test_what_a_cluster_holds(tmp_path, asked, nodes, complaint):
    wanted = requests(config(tmp_path, cluster=asked, train={"batch_pairs": 128}))
    if complaint is None:
        refuse_impossible(wanted, nodes, False)
    else:
        with pytest.raises(InputError) as error:
            refuse_impossible(wanted, nodes, False)
        assert complaint in str(error.value)


TRAINERS = Nodes("trainers", 2, {"CPU": 16, "GPU": 8}, {})
GREEDY = {"actors": 4, "gpus_per_actor": 1, "resources": {"scorer": 1.0}}  # no node has room for such an actor
ON_GPUS = {"workers": 16, "gpus_per_worker": 1}


def test_where_trainers_score_no_room_is_asked_for_the_pool(tmp_path):
    given = config(tmp_path, reference={**GREEDY, "by": "trainers"}, cluster=ON_GPUS)
    assert judge(given, [TRAINERS], None) is None
    with pytest.raises(InputError, match=r"^reference\.actors = 4, each with CPU 1, GPU 1, scorer 1: .* room for 0\."):
        judge(config(tmp_path, reference=GREEDY, cluster=ON_GPUS), [TRAINERS], None)
    with pytest.raises(InputError, match=r"^cluster\.workers = 16, each with CPU 1, GPU 1: .* room for 8\."):
        judge(given, [TRAINERS._replace(number=1)], None)
    with pytest.raises(InputError, match=r"^the run needs 32 CPUs at a time and the cluster has 24: .*worker to read"):
        judge(given, [TRAINERS._replace(resources={"CPU": 12, "GPU": 8})], None)


@pytest.mark.parametrize(
    ("evaluate", "held_out", "asks"), [({"generate_prompts": 4}, 0.1, True), ({"generate_prompts": 4}, None, False)]
)
def test_answers_are_the_pools_in_any_case(tmp_path, evaluate, held_out, asks):
    data = {"train": "pairs.jsonl"} if held_out is None else {"train": "pairs.jsonl", "eval": held_out}
    given = config(tmp_path, reference={**GREEDY, "by": "trainers"}, cluster=ON_GPUS, evaluate=evaluate, data=data)
    assert given.asks_pool == asks
    if not asks:
        assert judge(given, [TRAINERS], None) is None
        return
    with pytest.raises(InputError, match=r"^reference\.actors = 4, "):
        judge(given, [TRAINERS], None)


def test_gpus_that_a_machine_lacks_are_missed_only_where_actors_are_asked(tmp_path):
    actors = {"gpus_per_actor": 1, "actors": 1000}
    refuse_missing_gpus(config(tmp_path, reference={**actors, "by": "trainers"}))
    with pytest.raises(InputError, match=r"^reference\.gpus_per_actor asks for 1000 GPU\(s\) in all and this machine "):
        refuse_missing_gpus(config(tmp_path, reference=actors))


LATER = {"sft": {"epochs": 1}}
NEEDS = [  # settings, the last stage, whether it needs actors, and workers
    ({}, "prepare", False, False),
    ({}, "sft", False, False),
    (LATER, "prepare", False, False),
    (LATER, "sft", False, True),
    ({}, "score", True, False),
    ({}, "order", True, False),
    (LATER, "order", True, True),
    ({}, "train", True, True),
    ({}, "export", True, True),
    ({"reference": {"by": "trainers"}}, "sft", False, False),
    ({"reference": {"by": "trainers"}}, "score", False, True),
    ({"reference": {"by": "trainers"}}, "export", False, True),
]


@pytest.mark.parametrize(("settings", "until", "actors", "workers"), NEEDS)
def test_a_stage_asks_for_what_it_needs(tmp_path, settings, until, actors, workers):
    """GPUs that only later stages use are not missed, neither on this machine nor on a cluster."""
    reference = {"actors": 1000, "gpus_per_actor": 1, **settings.get("reference", {})}
    cluster = {"workers": 32, "gpus_per_worker": 1}
    given = config(tmp_path, **{**settings, "reference": reference, "cluster": cluster})
    assert given.asks(until) == (actors, workers)
    said = missing_gpus(given, until)
    assert (said is not None) == (actors or workers)
    if not actors and not workers:
        assert judge(given, [HEAD], None, until) is None
        return
    with pytest.raises(InputError):
        judge(given, [HEAD], None, until)


def test_scoring_beside_training_needs_room_for_both(tmp_path):
    gpus = Nodes("g", 1, {"CPU": 8, "GPU": 3}, {})
    asked = {"reference": {"actors": 2, "gpus_per_actor": 1}, "cluster": {"workers": 2, "gpus_per_worker": 1}}
    wanted = requests(config(tmp_path, **asked))
    refuse_impossible(wanted, [gpus], False)
    refuse_impossible(wanted, [gpus, gpus], True)
    with pytest.raises(
        InputError, match=r"needs 4 GPUs at a time and the cluster has 3: cluster\.workers = 2 with 1 each"
    ):
        refuse_impossible(wanted, [gpus], True)
    with pytest.raises(
        InputError, match=r"needs 7 CPUs at a time and the cluster has 6: .*, and one more for each worker"
    ):
        refuse_impossible(wanted, [gpus._replace(resources={"CPU": 6, "GPU": 4})], True)


def test_the_nodes_are_listed(tmp_path):
    wanted = requests(config(tmp_path, reference={"actors": 5}))
    with pytest.raises(InputError) as error:
        refuse_impossible(wanted, [HEAD, Nodes("gpu", 0, {"GPU": 8}, {})], False)
    assert str(error.value) == (
        "reference.actors = 5, each with CPU 1: the cluster has room for 4. Its nodes: head: CPU 4; gpu (up to 0): "
        "GPU 8. Ask for less, or give the cluster such nodes."
    )


@pytest.mark.parametrize("workers", [0, [1], [0, 2], [3, 2], [1, 2, 3], []])
def test_a_number_of_workers_that_makes_no_sense(tmp_path, workers):
    with pytest.raises(
        InputError, match=r"cluster\.workers = .*(give a number from 1, or \[least, most\]|write \[2, 3\])"
    ):
        config(tmp_path, cluster={"workers": workers})
