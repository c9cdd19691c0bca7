"""The GPUs that there are: on this machine, or on the nodes of a cluster that the run joins."""

from __future__ import annotations

import os
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.claim import make_folders
from pipeline.cluster.connect import connect, joined
from pipeline.config import Config
from pipeline.config.machine import Machine
from pipeline.errors import InputError
from pipeline.place import Place
from pipeline.process import Process

if TYPE_CHECKING:
    from pipeline.cluster.capacity import Nodes

DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA, in WSL, of AMD
WORKERS, ACTORS = {"workers", "gpus_per_worker"}, {"actors", "gpus_per_actor"}  # with these a cluster is not asked
NONE = Machine(0)
BFLOAT16 = (8, 0)  # the first compute capability whose matrix products take bfloat16


def settled(config: Config, ask_cluster: bool = False) -> Config:
    """Fill in the settings that follow from the GPUs of this machine, or of the cluster that the run joins.

    Args:
        ask_cluster: join the cluster to ask for its GPUs where something is left out; otherwise it counts as without.

    Raises:
        InputError: train.dtype is bfloat16 and a GPU of this machine has no such products.
    """
    if joined(config) is not None:
        complete = config.cluster.model_fields_set >= WORKERS and config.reference.model_fields_set >= ACTORS
        return _settled_on_cluster(config) if ask_cluster and not complete else config.settled(NONE, NONE)
    found = _gpus_here()
    given = config.settled(found.machine, found.machine)
    trains = found.machine.gpus and given.cluster.gpus_per_worker
    if trains and given.train.dtype == "bfloat16" and found.capability < BFLOAT16:
        raise InputError(
            f"train.dtype = bfloat16: the GPUs of this machine have compute capability {found.capability[0]}."
            f'{found.capability[1]}, and bfloat16 needs 8.0. Set train.dtype = "float32".'
        )
    return given


def tell_gpus(place: Place) -> None:
    """Say in one line where a settled configuration trains and scores, or that it leaves GPUs of this machine idle."""
    cluster, reference = place.config.cluster, place.config.reference
    if cluster.gpus_per_worker or reference.gpus_per_actor:
        place.terminal.note(
            f"training: {cluster.workers} worker(s), each with {cluster.gpus_per_worker} GPU(s) and "
            f"{cluster.cpus_per_worker} CPU(s), in {place.config.train.dtype}; scoring: {reference.actors} actor(s), "
            f"each with {reference.gpus_per_actor} GPU(s) and {reference.cpus_per_actor} CPU(s)"
        )
    elif joined(place.config) is None and _gpus_here().machine.gpus:
        place.terminal.note("this machine has GPUs, and the configuration uses none (cluster.gpus_per_worker = 0)")


class Found(NamedTuple):
    """The GPUs of this machine, and the compute capability of the oldest."""

    machine: Machine
    capability: tuple[int, int]


@cache
def _gpus_here() -> Found:
    if not any(Path(path).exists() for path in DRIVERS):
        return Found(NONE, (0, 0))  # without a second for torch
    return Process(count_gpus).result()


def count_gpus() -> Found:
    """Ask torch for the GPUs of this machine."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return Found(NONE, (0, 0))
    capability = min(torch.cuda.get_device_capability(i) for i in range(count))
    return Found(Machine(count, (os.cpu_count() or 1) // count), capability)


def _settled_on_cluster(config: Config) -> Config:
    from pipeline.cluster.capacity import nodes_there

    place = Place.of(config)
    make_folders(place.run_dir, place.workspace)  # Ray's log is in one of them
    connect(place)
    nodes = nodes_there()
    return config.settled(
        machine_of(nodes, config.cluster.resources, config.cluster.labels),
        machine_of(nodes, config.reference.resources, config.reference.labels),
    )


def machine_of(nodes: list[Nodes], resources: dict[str, float], labels: dict[str, str]) -> Machine:
    """The GPUs of the nodes that have all of these resources and labels; without bound, those of one node count."""
    fitting = [
        node
        for node in nodes
        if node.resources.get("GPU", 0)
        and all(node.resources.get(name, 0) >= amount for name, amount in resources.items())
        and all(node.labels.get(name) == value for name, value in labels.items())
    ]
    gpus = sum(int(node.resources["GPU"]) * (int(node.number) if isfinite(node.number) else 1) for node in fitting)
    cpus = min((int(node.resources.get("CPU", 1) // node.resources["GPU"]) for node in fitting), default=1)
    return Machine(gpus, cpus)
