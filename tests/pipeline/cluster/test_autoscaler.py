"""What an autoscaler may add is known, and a run waits for it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util import placement_group_table

from pipeline.cluster import autoscaler, room
from pipeline.cluster.autoscaler import addable, from_kuberay, growth, start_seconds
from pipeline.cluster.capacity import Growth, Nodes, judge
from pipeline.cluster.connect import connect, disconnect
from pipeline.cluster.room import Ahead, wait_for_workers
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.place import Place
from pipeline.run import run
from tests.pipeline.files import config_file, jsonl
from tests.places import ROOT

EXAMPLE = str(ROOT / "examples" / "zero3_offload_8gpu.toml")
HEAD = Nodes("10.0.0.1", 1, {"CPU": 16.0, "memory": 4e10, "node:__internal_head__": 1.0}, {})
# What `ray up` finds out about the machines of cluster.yaml, and writes down beside the custom resources.
MACHINES = {"head": {"CPU": 16}, "scorer": {"CPU": 16, "GPU": 1}, "trainer": {"CPU": 96, "GPU": 8}}

LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
LISTS += ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


def ray_up():
    """What `ray up cluster.yaml` leaves on the head."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    for name, group in config["available_node_types"].items():
        group["resources"] = {**MACHINES[name], **group["resources"]}
        group.setdefault("max_workers", config["max_workers"])
    return config


def ray_job():
    """The RayCluster that KubeRay makes of the job."""
    job = yaml.safe_load((ROOT / "examples" / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))
    return {"metadata": {"name": "ray-align", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}


def judged(there, config, *overrides):
    return judge(Config.load(EXAMPLE, list(overrides)), there, Growth(addable(config, Counter(head=1))))


# What may be added


def test_the_example_is_accepted_where_only_the_head_is_there():
    assert judged([HEAD], ray_up()) is None
    assert addable(ray_up(), Counter(head=1)) == [
        ("scorer", 4, {"CPU": 16, "GPU": 1, "scorer": 1}, {}),
        ("trainer", 4, {"CPU": 96, "GPU": 8, "trainer": 8}, {}),
    ]


def test_the_example_is_accepted_by_the_ray_job():
    config = from_kuberay(ray_job())
    assert config["available_node_types"]["trainers"]["resources"]["trainer"] == 8
    assert judged([HEAD._replace(resources={"CPU": 0})], config) is None
    there = [HEAD._replace(resources={"CPU": 0})]
    for group in ray_job()["spec"]["workerGroupSpecs"]:  # as it starts, before anything is added
        resources = config["available_node_types"][group["groupName"]]["resources"]
        there.append(Nodes(group["groupName"], group["replicas"], resources, {}))
    assert judge(Config.load(EXAMPLE), there, None) is None


@pytest.mark.parametrize("config", [ray_up(), from_kuberay(ray_job())], ids=["ray up", "KubeRay"])
def test_more_than_the_groups_can_hold_is_refused(config):
    asked = ["cluster.workers=64", "train.batch_pairs=128"]
    with pytest.raises(InputError, match=r"cluster\.workers = 64, each with .*GPU 1.*: the cluster has room for 32\."):
        judged([HEAD], config, *asked)


def test_nodes_that_run_are_not_counted_twice():
    config = ray_up()
    running = Counter(head=1, scorer=4, trainer=1)
    assert [(kind.name, kind.number) for kind in addable(config, running) or []] == [("trainer", 3)]
    config["max_workers"] = 6  # of all groups together
    assert [(kind.name, kind.number) for kind in addable(config, running) or []] == [("trainer", 1)]


def test_a_group_of_unknown_machines_is_not_judged():
    config = ray_up()
    config["available_node_types"]["trainer"]["resources"] = {"trainer": 8}
    assert addable(config, Counter(head=1)) is None
    said = judged([HEAD], config) or ""
    assert "cannot be judged, waiting for nodes" in said
    assert (
        judged([HEAD._replace(number=99, resources={"CPU": 96, "GPU": 8, "trainer": 8, "scorer": 8})], config) is None
    )


def test_groups_of_an_earlier_cluster_are_not_those_of_this_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    assert autoscaler._from_ray_up(Counter(head=1)) is None  # nothing there
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(ray_up()), encoding="utf-8")
    assert autoscaler._from_ray_up(Counter(head=1, trainer=2)) == ray_up()
    assert autoscaler._from_ray_up(Counter(headgroup=1)) is None
    assert autoscaler._from_kuberay() is None


def test_a_pod_that_may_not_ask_knows_no_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_CLUSTER_NAME", "ray-align")
    monkeypatch.setattr(autoscaler, "NAMESPACE", tmp_path / "namespace")
    assert autoscaler._from_kuberay() is None
    (tmp_path / "namespace").write_text("default", encoding="utf-8")
    assert autoscaler._from_kuberay() is None  # without the credentials of a pod


# A cluster that grows


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """A Ray with an autoscaler that starts its nodes on this machine: the address, and the home folder of its head."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "gcs_address": address}
    groups = {
        "ray.head.default": {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0},
        "scorer": {"resources": {"CPU": 1, "scorer": 1}, "node_config": {}, "max_workers": 1},
        "trainer": {"resources": {"CPU": 1, "trainer": 1}, "node_config": {}, "max_workers": 1},
    }
    config = {
        "cluster_name": "growing",
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1.0,
        "provider": provider | {"disable_node_updaters": True, "disable_launch_config_check": True},
        "auth": {},
        "available_node_types": groups,
        "head_node_type": "ray.head.default",
    }
    config |= {key: [] for key in LISTS}
    path = home / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--autoscaling-config={path}"]
    command += [f"--port={address.rpartition(':')[2]}", "--num-cpus=3", "--include-dashboard=false"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=200000000"]
    fakes = {"RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    environment = os.environ | fakes | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(command, env=environment, stdout=(home / "log").open("wb"), stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while b"Ray runtime started" not in (home / "log").read_bytes():  # one who asks before that waits a minute
        assert head.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    yield address, home
    for process in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]:
        process.kill()
    head.wait()


@pytest.fixture
def config(growing, tmp_path, monkeypatch):
    address, home = growing
    monkeypatch.setenv("HOME", str(home))
    pairs = [{"prompt": f"say {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}"} for i in range(12)]
    path = config_file(
        tmp_path,
        run={"dir": str(tmp_path / "runs"), "workspace": str(tmp_path / "workspace")},
        data={"train": str(jsonl(tmp_path / "pairs.jsonl", pairs)), "max_length": 64},
        policy={"kind": "x-transformers", "dim": 16, "depth": 1, "heads": 2},
        reference={"resources": {"scorer": 1.0}},
        cluster={"address": address, "resources": {"trainer": 1.0}, "start_minutes": 3},
    )
    yield Config.load(path)
    disconnect()


def connected(config):
    """The place of a run that has joined the cluster, whose autoscaler has looked at it once."""
    place = Place.of(config)
    place.run_dir.mkdir(parents=True)
    deadline = time.monotonic() + 60
    while True:
        try:
            connect(place)
            if growth() is not None:
                return place
        except InputError:
            disconnect()
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.ray
def test_what_a_running_autoscaler_may_add_is_known(config, monkeypatch, tmp_path):
    connected(config)
    groups = [Nodes(name, 1, {"CPU": 1, name: 1}, {}) for name in ("scorer", "trainer")]
    assert growth() == Growth(groups)
    assert start_seconds(config) == 180
    unset = config.model_copy(update={"cluster": config.cluster.model_copy(update={"start_minutes": None})})
    assert start_seconds(unset) == 1200
    monkeypatch.setenv("HOME", str(tmp_path))
    assert growth() == Growth(None)


@pytest.mark.ray
def test_nodes_of_training_are_asked_for_before_scoring_ends(config, monkeypatch):
    shared = config.model_copy(update={"reference": config.reference.model_copy(update={"resources": {}})})
    place = connected(config)
    monkeypatch.setattr(room, "AHEAD_SECONDS", 60.0)
    Ahead(Place.of(shared)).look(20, 20)  # whose scoring may be on the nodes of training, too
    ahead = Ahead(place)
    ahead._began = time.monotonic() - 100
    ahead.look(10, 20)  # 100 s are left
    assert room._asked_ahead() is None
    ahead.look(15, 20)  # 33 s
    group = room._asked_ahead()
    assert group is not None
    assert group.wait(60)  # on a node that was not there
    ahead.look(20, 20)
    Ahead(place).look(20, 20)
    asked = [group for group in placement_group_table().values() if group["name"] == room.AHEAD]
    assert [group["state"] for group in asked] == ["CREATED"]
    wait_for_workers(place)
    assert room._asked_ahead() is None


@pytest.mark.ray
def test_scoring_and_training_wait_for_nodes_that_the_autoscaler_starts(config):
    connected(config)
    disconnect()
    assert run(config, "train")["steps"] == 1
