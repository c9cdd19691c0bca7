"""Settings that follow from the machine or cluster, where the configuration leaves them out."""

from __future__ import annotations

from typing import Any, NamedTuple


class Machine(NamedTuple):
    """The GPUs that a kind of process may use."""

    gpus: int  # in all
    cpus_per_gpu: int = 1  # on one node
    memory: float | None = None  # bytes of the smallest GPU; None: unknown
    cores: int = 0  # CPU cores that processes without GPUs may share; 0: unknown, or another's machine


def workers_settings(cluster: Any, machine: Machine, most: int, spared: int, beside: int) -> dict[str, Any]:
    """The keys of [cluster] that are left out: a worker on each GPU, or without them its share of the cores.

    Args:
        most: workers that have a pair of each step.
        spared: GPUs that scoring needs at the same time.
        beside: actors that compute at the same time on the same cores.
    """
    if not machine.gpus or (cluster.model_fields_set & {"gpus_per_worker"} and not cluster.gpus_per_worker):
        return _left_out(cluster, _share("cpus_per_worker", machine.cores, cluster.most_workers + beside))
    found = {
        "gpus_per_worker": 1,
        "workers": max(1, min(machine.gpus - spared, most)),
        "cpus_per_worker": max(1, machine.cpus_per_gpu - 1),
    }
    return _left_out(cluster, found)


def actors_settings(reference: Any, machine: Machine, at_once: bool, beside: int) -> dict[str, Any]:
    """The keys of [reference] that are left out: an actor on each GPU, or without them its share of the cores.

    Args:
        at_once: whether training runs at the same time, so that one actor must do.
        beside: workers that compute at the same time on the same cores.
    """
    if not machine.gpus or (reference.model_fields_set & {"gpus_per_actor"} and not reference.gpus_per_actor):
        return _left_out(reference, _share("cpus_per_actor", machine.cores, reference.actors + beside))
    each = max(1, reference.gpus_per_actor)
    found = {
        "gpus_per_actor": 1,
        "actors": 1 if at_once else max(1, machine.gpus // each),
        "cpus_per_actor": max(1, machine.cpus_per_gpu * each - 1),
    }
    return _left_out(reference, found)


def _share(key: str, cores: int, processes: int) -> dict[str, Any]:
    return {key: max(1, cores // processes)} if cores else {}


def _left_out(section: Any, found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in section.model_fields_set}
