"""The files that start clusters fit together, and say what a node with GPUs needs. No cloud is asked."""

import re

import pytest
import yaml

from tests.places import ROOT

DRIVER = re.compile(r"driver (\d{3})\b")
WHEELS = re.compile(r"^\| .*\bCUDA (\d+)\b.* \| (\d{3}) ", re.M)
GPU_MACHINES = ("g4", "g5", "g6", "p3", "p4", "p5", "p6")


@pytest.fixture(scope="module")
def up():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def job():
    path = ROOT / "examples" / "kuberay" / "rayjob.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["rayClusterSpec"]


def container(group):
    (only,) = group["template"]["spec"]["containers"]
    return only


def gpu_groups(job):
    groups = job["workerGroupSpecs"]
    found = [group for group in groups if "nvidia.com/gpu" in container(group)["resources"]["limits"]]
    assert len(found) == 2
    return found


def test_every_machine_with_gpus_has_an_image_and_its_driver_is_named(up):
    types = up["available_node_types"].values()
    gpus = [kind["node_config"] for kind in types if kind["node_config"]["InstanceType"].startswith(GPU_MACHINES)]
    assert len(gpus) == 2
    assert all(config["ImageId"].startswith("ami-") for config in gpus)
    (line,) = [line for line in (ROOT / "cluster.yaml").read_text(encoding="utf-8").splitlines() if "&ami" in line]
    (driver,) = DRIVER.findall(line)
    page = (ROOT / "examples" / "guides" / "operations.md").read_text(encoding="utf-8")
    assert int(driver) >= max(int(least) for _, least in WHEELS.findall(page))


def test_the_machines_have_room_for_the_image(up):
    for kind in up["available_node_types"].values():
        (disk,) = kind["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100


def test_one_image_is_built_and_used(up, job):
    used = {up["docker"]["image"], container(job["headGroupSpec"])["image"]}
    used |= {container(group)["image"] for group in job["workerGroupSpecs"]}
    (image,) = used
    assert f"docker build -t {image} . && docker push {image}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not any(key.endswith("setup_commands") for key in up)  # nothing is installed when a node boots


def test_the_ray_job_scales(job):
    assert job["enableInTreeAutoscaling"] is True
    assert job["autoscalerOptions"]["idleTimeoutSeconds"] > 300
    for group in job["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_what_the_pods_of_the_ray_job_ask_for(job):
    for group in [job["headGroupSpec"], *job["workerGroupSpecs"]]:
        asked = container(group)["resources"]
        assert asked["requests"] == asked["limits"]
    for group in gpu_groups(job):
        pod = group["template"]["spec"]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
        (shm,) = [mount["name"] for mount in container(group)["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        (volume,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == shm]
        memory = container(group)["resources"]["limits"]["memory"]
        assert volume["medium"] == "Memory"
        assert 8 <= int(volume["sizeLimit"].removesuffix("Gi")) <= int(memory.removesuffix("Gi")) / 2


def test_the_ray_job_authenticates(job):
    assert job["authOptions"] == {"mode": "token"}
