"""The autoscaler of a cluster, where one runs: which nodes it may still add, and how long a stage waits for them.

Ray 2.60 tells no program what its autoscaler may add. It is read where the autoscaler itself reads it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as from_kuberay
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from pipeline.cluster.capacity import Growth, Nodes

if TYPE_CHECKING:
    from pipeline.config import Config

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # `ray up` leaves it on the head
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # of the pod that this process runs in
OWN_GROUP = re.compile("node_[0-9a-f]{32,}")  # which Ray's monitor makes up for a node that was started by hand
MINUTES_AUTOSCALED, MINUTES_FIXED = 20.0, 4.0  # a machine to boot and an image to load; nodes that are there


def growth() -> Growth | None:
    """The nodes that the cluster's autoscaler may still add; None where no autoscaler runs."""
    started = _started()
    reported = state.get_cluster_config()  # which some services around Ray fill in
    if reported is not None and reported.node_group_configs:
        return Growth(addable(_from_report(reported.node_group_configs), started))
    if not started:
        return None
    config = _from_ray_up(started) or _from_kuberay()
    return Growth(addable(config, started) if config is not None else None)


def start_seconds(config: Config) -> float:
    """How long a stage waits for its nodes."""
    minutes = config.cluster.start_minutes
    if minutes is None:
        minutes = MINUTES_AUTOSCALED if runs() else MINUTES_FIXED
    return minutes * 60


def runs() -> bool:
    """Whether the cluster has an autoscaler."""
    return bool(_started())


def addable(config: dict[str, Any], started: Counter[str]) -> list[Nodes] | None:
    """The nodes that an autoscaler may add; None where the resources of a group are not known.

    Args:
        config: `available_node_types`, `head_node_type` and `max_workers`, as the autoscaler reads them.
        started: the nodes of each group that run.
    """
    groups = {name: group for name, group in config["available_node_types"].items() if name != config["head_node_type"]}
    left = config["max_workers"] - sum(started[name] for name in groups)
    found = []
    for name, group in groups.items():
        more = min(group["max_workers"] - started[name], left)
        if more > 0 and "CPU" not in group["resources"]:  # Ray did not know the machine, or it is one of your own
            return None
        if more > 0:
            found.append(Nodes(name, more, group["resources"], group.get("labels") or {}))
    return found


def _started() -> Counter[str]:
    """How many nodes of each group run, the head's among them; empty where no autoscaler runs."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        found = Counter(node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes])
    else:
        status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
        report = status.get("autoscaler_report")  # which the first status lacks
        found = Counter(report["active_nodes"] if report else {})
    return Counter({name: number for name, number in found.items() if not OWN_GROUP.fullmatch(name)})


def _from_report(groups: Any) -> dict[str, Any]:
    types = {
        group.name: {
            "resources": dict(group.resources),
            "max_workers": group.max_count if group.max_count >= 0 else math.inf,
        }
        for group in groups
    }
    return {"available_node_types": types, "head_node_type": None, "max_workers": math.inf}


def _from_ray_up(started: Counter[str]) -> dict[str, Any] | None:
    """The settings that `ray up` left on this machine; None on another than the head."""
    try:
        config = yaml.safe_load(Path(BOOTSTRAP).expanduser().read_text(encoding="utf-8"))
    except OSError:
        return None
    # One that an earlier cluster left there names other groups.
    return config if started.keys() <= config["available_node_types"].keys() else None


def _from_kuberay() -> dict[str, Any] | None:
    """The settings that KubeRay has of this cluster; None outside of Kubernetes, or in a pod that may not ask."""
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay sets it in every pod
    if name is None:
        return None
    try:
        client = KubernetesHttpApiClient(NAMESPACE.read_text(encoding="utf-8"))
        return from_kuberay(client.get(f"rayclusters/{name}"))
    except OSError:  # also that of a request which was refused
        return None
