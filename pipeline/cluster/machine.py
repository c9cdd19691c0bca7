"""The GPUs that there are: on this machine, or on the nodes of a cluster that the run joins."""

from __future__ import annotations

import os
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.claim import begun_sharding, make_folders
from pipeline.cluster.connect import connect, joined
from pipeline.config import Config
from pipeline.config.deepspeed import given_stage
from pipeline.config.machine import Machine
from pipeline.errors import InputError
from pipeline.models.cards import memory_of
from pipeline.place import Place
from pipeline.process import Process

if TYPE_CHECKING:
    from pipeline.cluster.capacity import Nodes

DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA, in WSL, of AMD
WORKERS, ACTORS = {"workers", "gpus_per_worker"}, {"actors", "gpus_per_actor"}  # with these a cluster is not asked
KIND = "ray.io/accelerator-type"  # the label of a node that names its cards
NONE = Machine(0)
BFLOAT16 = (8, 0)  # the first compute capability whose matrix products take bfloat16


def settled(config: Config, ask_cluster: bool = False, memory: float | None = None) -> Config:
    """Fill in the settings that follow from the GPUs and cores of this machine, or of the cluster that the run joins.

    Args:
        ask_cluster: join the cluster to ask for its GPUs where something is left out; otherwise it counts as without.
        memory: bytes of a GPU, where the run is for others than are here; where none is here, it counts as one.

    Raises:
        InputError: train.dtype is bfloat16 and a GPU of this machine has no such products.
    """
    if joined(config) is not None:
        there = _gpus_of_cluster(config) if ask_cluster and _leaves_open(config) else (NONE, NONE)
        return _sharded(config, config.settled(*there), memory or there[0].memory)
    found = _gpus_here()
    machine = found.machine._replace(cores=os.cpu_count() or 1)
    if memory is not None and not machine.gpus:
        machine = Machine(1, memory=memory)
    given = config.settled(machine, machine)
    trains = found.machine.gpus and given.cluster.gpus_per_worker
    if trains and given.train.dtype == "bfloat16" and found.capability < BFLOAT16:
        raise InputError(
            f"train.dtype = bfloat16: the GPUs of this machine have compute capability {found.capability[0]}."
            f'{found.capability[1]}, and bfloat16 needs 8.0. Set train.dtype = "float32".'
        )
    return _sharded(config, given, memory or machine.memory)


def _leaves_open(config: Config) -> bool:
    """Whether something follows from the GPUs of a cluster."""
    if not (config.cluster.model_fields_set >= WORKERS and config.reference.model_fields_set >= ACTORS):
        return True
    return config.deepspeed.stage == "auto" and config.cluster.gpus_per_worker > 0


def _sharded(config: Config, given: Config, memory: float | None) -> Config:
    """Choose the keys of [deepspeed] that stage = "auto" leaves open. A run that has begun keeps its own.

    Args:
        config: as loaded.
        given: `config`, settled but for the choice.
        memory: bytes of a GPU; None: unknown.
    """
    if given_stage(config.deepspeed) is not None:
        return given
    chosen = begun_sharding(config)
    if not chosen and given.cluster.gpus_per_worker and memory is not None:
        from pipeline.models.room import chosen_sharding  # which loads torch, as a run on CPUs does not

        chosen = chosen_sharding(given, memory)
    open_keys = {name: value for name, value in chosen.items() if name not in config.deepspeed.model_fields_set}
    kept = {**open_keys, "stage": chosen.get("stage", given.deepspeed.stage)}
    return given.model_copy(update={"deepspeed": given.deepspeed.model_copy(update=kept)})


def tell_gpus(place: Place) -> None:
    """Say in one line where a settled configuration trains and scores, or that it leaves GPUs of this machine idle."""
    cluster, reference = place.config.cluster, place.config.reference
    if cluster.gpus_per_worker or (reference.gpus_per_actor and place.config.asks_pool):
        place.terminal.note(
            f"training: {cluster.workers} worker(s), each with {cluster.gpus_per_worker} GPU(s) and "
            f"{cluster.cpus_per_worker} CPU(s), in {place.config.train.dtype} at ZeRO stage "
            f"{place.config.deepspeed.stage}; {_pool_said(place.config)}"
        )
    elif joined(place.config) is None and _gpus_here().machine.gpus:
        place.terminal.note("this machine has GPUs, and the configuration uses none (cluster.gpus_per_worker = 0)")


def _pool_said(config: Config) -> str:
    """Where a configuration scores, and where it answers if that is elsewhere."""
    reference, here = config.reference, "" if config.reference.by == "pool" else "by the same workers; answers: "
    if not config.asks_pool:
        return "scoring: by the same workers"
    return (
        f"scoring: {here}{reference.actors} actor(s), each with {reference.gpus_per_actor} GPU(s) and "
        f"{reference.cpus_per_actor} CPU(s)"
    )


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
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return Found(Machine(count, (os.cpu_count() or 1) // count, float(memory)), capability)


def _gpus_of_cluster(config: Config) -> tuple[Machine, Machine]:
    """The GPUs of the nodes that workers may run on, and those that actors may."""
    from pipeline.cluster.capacity import nodes_there

    place = Place.of(config)
    make_folders(place.run_dir, place.workspace)  # Ray's log is in one of them
    connect(place)
    nodes = nodes_there()
    return (
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
    memories = [memory_of(node.labels.get(KIND) or labels.get(KIND, "")) for node in fitting]
    known = [memory for memory in memories if memory is not None]
    return Machine(gpus, cpus, min(known) if known and len(known) == len(memories) else None)
