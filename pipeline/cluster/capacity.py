"""Whether a cluster can ever hold what a run asks for. Ray itself would wait for ever; this says within seconds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import ray
from ray._private.state import state

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.config import Config


class Request(NamedTuple):
    """A number of processes at one time, each on one node with these resources and labels."""

    key: str
    number: int
    each: dict[str, float]
    labels: dict[str, str]


class Nodes(NamedTuple):
    """A number of nodes of one kind that exist or, with an autoscaler, may be added."""

    name: str
    number: float
    resources: dict[str, float]
    labels: dict[str, str]


def requests(config: Config) -> list[Request]:
    """The requests of scoring and of training, which do not run at the same time."""
    reference, cluster = config.reference, config.cluster
    actor = {"CPU": reference.cpus_per_actor, "GPU": reference.gpus_per_actor} | reference.resources
    worker = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker} | cluster.resources
    return [
        Request("reference.actors", reference.actors, actor, reference.labels),
        Request("cluster.workers", cluster.least_workers, worker, cluster.labels),
    ]


def nodes_of_cluster() -> list[Nodes]:
    """The nodes that are there, and those that an autoscaler may add."""
    there = [
        Nodes(node["NodeManagerAddress"], 1, node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]
    scaled = state.get_cluster_config()
    groups = scaled.node_group_configs if scaled is not None else []
    return there + [Nodes(g.name, g.max_count if g.max_count >= 0 else math.inf, dict(g.resources), {}) for g in groups]


def refuse_impossible(wanted: list[Request], nodes: list[Nodes], at_once: bool) -> None:
    """Raise an InputError that names what the cluster can never hold.

    Args:
        wanted: what scoring asks for, and what training does.
        at_once: whether they run at the same time.
    """
    for request in wanted:
        room = sum(_room(request, kind) for kind in nodes)
        if room < request.number:
            raise InputError(
                f"{request.key} = {request.number}, each with {_said(request.each)}{_on(request.labels)}: the cluster "
                f"has room for {int(room)}. Its nodes: {_listed(nodes)}. Ask for less, or give the cluster such nodes."
            )
    scoring, training = wanted
    together = wanted if at_once else [training]
    for name, extra in (("CPU", training.number + at_once), ("GPU", 0)):
        needed = sum(request.number * request.each[name] for request in together) + extra
        there = sum(kind.number * kind.resources.get(name, 0) for kind in nodes)
        if there < needed:
            both = f", {scoring.key} = {scoring.number} with {scoring.each[name]:g} each" if at_once else ""
            reading = ", and one more for each worker to read data" if name == "CPU" else ""
            raise InputError(
                f"the run needs {needed:g} {name}s at a time and the cluster has {there:g}: {training.key} = "
                f"{training.number} with {training.each[name]:g} each{both}{reading}. Lower these, or give the cluster "
                "more."
            )


def _room(request: Request, kind: Nodes) -> float:
    """How many of the requested processes such nodes hold."""
    # A selector like in(a, b) or !a is Ray's to judge; only plain values are compared here.
    plain = {key: value for key, value in request.labels.items() if not value.startswith(("!", "in(", "!in("))}
    if kind.labels and any(kind.labels.get(key) != value for key, value in plain.items()):
        return 0
    each = [kind.resources.get(name, 0) // amount for name, amount in request.each.items() if amount]
    return kind.number * min(each) if each else math.inf


def _said(resources: dict[str, float]) -> str:
    """CPU 2, GPU 1; Ray's own bookkeeping left out."""
    own = {"memory", "object_store_memory"}
    kept = {k: v for k, v in sorted(resources.items()) if v and k not in own and not k.startswith("node:")}
    return ", ".join(f"{name} {amount:g}" for name, amount in kept.items()) or "nothing"


def _on(labels: dict[str, str]) -> str:
    return " on a node labelled " + ", ".join(f"{k}={v}" for k, v in labels.items()) if labels else ""


def _listed(nodes: list[Nodes]) -> str:
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    shown = (f"{n.name}{'' if n.number == 1 else f' (up to {n.number:g})'}: {_said(n.resources)}" for n in nodes[:8])
    return "; ".join(shown) + more
