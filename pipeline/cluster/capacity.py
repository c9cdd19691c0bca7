"""Whether a cluster can ever hold what a run asks for. Ray itself would wait for ever; this says within seconds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.config import Config


class Request(NamedTuple):
    """A number of processes at one time, each on one node with these resources and labels."""

    key: str
    number: int
    each: dict[str, float]
    labels: dict[str, str]

    @property
    def text(self) -> str:
        """The request as errors name it."""
        where = " on a node labelled " + ", ".join(f"{k}={v}" for k, v in self.labels.items()) if self.labels else ""
        return f"{self.key} = {self.number}, each with {_said(self.each)}{where}"


class Nodes(NamedTuple):
    """A number of nodes of one kind that exist or, with an autoscaler, may be added."""

    name: str
    number: float
    resources: dict[str, float]
    labels: dict[str, str]


class Growth(NamedTuple):
    """The nodes that may be added to those that are there; None: nobody says which."""

    nodes: list[Nodes] | None


def requests(config: Config) -> list[Request]:
    """The requests of scoring and of training, which do not run at the same time."""
    reference, cluster = config.reference, config.cluster
    actor = {"CPU": reference.cpus_per_actor, "GPU": reference.gpus_per_actor} | reference.resources
    worker = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker} | cluster.resources
    return [
        Request("reference.actors", reference.actors, actor, reference.labels),
        Request("cluster.workers", cluster.least_workers, worker, cluster.labels),
    ]


def nodes_there() -> list[Nodes]:
    """The nodes of the cluster that are alive."""
    return [of_ray(node) for node in ray.nodes() if node["Alive"]]


def of_ray(node: dict[str, Any]) -> Nodes:
    """One node as Ray lists it."""
    return Nodes(node["NodeManagerAddress"], 1, node["Resources"], node.get("Labels") or {})


def node_name(node: dict[str, Any]) -> str:
    """The name by which people find a node that Ray lists: several may have one address."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def judge(config: Config, there: list[Nodes], growth: Growth | None, until: str = "export") -> str | None:
    """Refuse what a cluster can never hold; returns a sentence where nobody can say.

    Args:
        there: the nodes that are alive.
        growth: what may be added; None where nothing is awaited.
        until: the last stage that runs; what only later ones ask for is not looked at.

    Raises:
        InputError: names what was asked for and the nodes.
    """
    added = [] if growth is None else growth.nodes
    wanted = [request for request, asked in zip(requests(config), config.asks(until), strict=True) if asked]
    if not wanted:
        return None
    try:
        refuse_impossible(wanted, there + (added or []), config.reference.mode == "overlap" and len(wanted) == 2)
    except InputError:
        if added is not None:
            raise
        return (
            "whether this cluster can hold the run cannot be judged, waiting for nodes: those that are there do not "
            "suffice, and which ones may be added is not known here"
        )
    return None


def refuse_impossible(wanted: list[Request], nodes: list[Nodes], at_once: bool) -> None:
    """Raise an InputError that names what the cluster can never hold.

    Args:
        wanted: what scoring asks for, if it needs actors, and what training does.
        at_once: whether they run at the same time.
    """
    for request in wanted:
        room = sum(_room(request, kind) for kind in nodes)
        if room < request.number:
            raise InputError(
                f"{request.text}: the cluster has room for {int(room)}. Its nodes: {listed(nodes)}. Ask for less, or "
                "give the cluster such nodes."
            )
    scoring, training = wanted[0], wanted[-1]
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


def holds(request: Request, kind: Nodes) -> bool:
    """Whether such a node has room for one of the processes."""
    return _room(request, kind) >= 1


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


def listed(nodes: list[Nodes]) -> str:
    """The nodes as errors name them, eight at most."""
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    shown = (f"{n.name}{'' if n.number == 1 else f' (up to {n.number:g})'}: {_said(n.resources)}" for n in nodes[:8])
    return "; ".join(shown) + more
