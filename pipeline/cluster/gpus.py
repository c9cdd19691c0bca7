"""A look at a GPU of every node that has some, before work is sent there; and what is wrong with the answers.

What is found costs seconds here. Later it costs a node that is paid for, or an hour until a collective gives up.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.capacity import holds, node_name, of_ray, requests
from pipeline.errors import InputError, last_line
from pipeline.place import Place
from pipeline.store import run_files
from pipeline.store.records import read_record, write_record

if TYPE_CHECKING:
    import torch

DRIVERS = {"11": 450, "12": 525, "13": 580}  # CUDA of a torch wheel -> the oldest driver, by NVIDIA's table
BFLOAT16_FROM = (8, 0)  # the first capability with bfloat16 in hardware
SIDE, REPEATS, ROUNDS = 4096, 10, 20  # of the product that is tried: 27 TFLOP in all
LARGEST_ERROR = 0.01  # of that product, relative; rounding to bfloat16 alone gives 0.002
SLOW = 0.5  # share of the speed of the fastest card of the same name, below which one is not taken
FREE_MEMORY = 0.8  # share of a card's memory that is free before anything of ours runs there
SHM_BYTES, DISK_BYTES = 4 * 10**9, 10 * 10**9  # NCCL and Ray share memory in /dev/shm; Ray spills to the disk
FREED_SECONDS = 3.0
SECONDS = 120  # for all nodes to answer: a new process that loads torch from a slow disk, then 2 s of looking


class Answer(NamedTuple):
    """The answer of a node about its first free GPU. All from `card` on is as if empty where torch sees no GPU."""

    driver: str | None  # such as 580.126.09; None: the machine does not say
    torch: str
    cuda: str | None  # that torch was built for; None: for CPUs alone
    disk: int  # free bytes of the temporary folder
    shm: int  # bytes of /dev/shm
    card: str | None = None
    capability: tuple[int, int] = (0, 0)
    memory: int = 0  # bytes of the card
    free: int = 0  # bytes of it
    error: float = 0.0  # of a product in bfloat16 against float32, relative
    teraflops: float = 0.0  # of that product
    cudnn: int | None = None
    nccl: str = ""

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Answer:
        """The answer that a file holds."""
        return cls(**{**value, "capability": tuple(value["capability"])})


def check_gpus(place: Place) -> None:
    """Look at the nodes with GPUs that this run has not looked at yet, and judge all of them together.

    Raises:
        InputError: names the nodes, what is wrong and the fix.
    """
    config = place.config
    if not (config.reference.gpus_per_actor or config.cluster.gpus_per_worker):
        return
    path = place.run_dir / run_files.NODES
    seen = {name: Answer.of_json(value) for name, value in (read_record(path) or {}).items()}
    there = {node_name(node): node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")}
    new = _ask({name: node["NodeID"] for name, node in there.items() if name not in seen})
    answers = {name: answer for name, answer in (seen | new).items() if name in there}
    _, training = requests(config)
    trainers = {name for name in answers if holds(training, of_ray(there[name]))}
    found = list(_problems(answers, config.train.dtype, trainers))
    if found:
        raise InputError("not every node with GPUs can do the work:\n" + "\n".join(found))
    if new and path.parent.exists():  # which `ray-align cache verify` does without
        kept = {name: answer._asdict() for name, answer in (seen | new).items()}
        write_record(path, kept)


def _ask(nodes: dict[str, str]) -> dict[str, Answer]:
    """The answers of those nodes, given as names and ids, that have a GPU free; another job's are left alone."""
    tasks, free = {}, _with_a_free_gpu(set(nodes.values()))
    for name, node_id in nodes.items():
        if node_id in free:
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            task: Any = ray.remote(look).options(num_cpus=0, num_gpus=1, max_retries=0, scheduling_strategy=here)
            tasks[name] = task.remote()
    if not tasks:
        return {}
    ready, _ = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=SECONDS)
    silent = [name for name, task in tasks.items() if task not in ready]
    for name in silent:
        ray.cancel(tasks[name], force=True)
    if silent:
        raise InputError(
            f"no answer within {SECONDS} s from a GPU of node {', '.join(silent)}; does nvidia-smi answer there?"
        )
    answers = {}
    for name, task in tasks.items():
        try:
            answers[name] = ray.get(task)
        except RayError as error:
            raise InputError(f"node {name}: trying its GPU failed: {last_line(error)}; take the node out") from error
    return answers


def _with_a_free_gpu(nodes: set[str]) -> set[str]:
    """Those of the nodes that have one. What was given back a moment ago takes Ray a moment to see."""
    end = time.monotonic() + FREED_SECONDS
    while True:
        found = {node for node, free in available_resources_per_node().items() if free.get("GPU", 0) >= 1} & nodes
        if found == nodes or time.monotonic() > end:
            return found
        time.sleep(0.2)


def look() -> Answer:
    """Look at this process's GPU."""
    import torch
    from torch.cuda import nccl

    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        said = ""
    answer = Answer(
        driver=driver_in(said),
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        disk=shutil.disk_usage(tempfile.gettempdir()).free,
        shm=shutil.disk_usage("/dev/shm").total,
    )
    if not torch.cuda.is_available():
        return answer
    free, memory = torch.cuda.mem_get_info()
    error, teraflops = product(torch.device("cuda"), SIDE)
    return answer._replace(
        card=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        memory=memory,
        free=free,
        error=error,
        teraflops=round(teraflops, 2),
        cudnn=torch.backends.cudnn.version(),
        nccl=".".join(map(str, nccl.version())),
    )


def driver_in(said: str) -> str | None:
    """The driver's version in what the kernel module says of itself."""
    found = re.search(r"Kernel Module.*?\s(\d{3,}(?:\.\d+)+)\s", said)
    return found[1] if found else None


def product(device: torch.device, side: int) -> tuple[float, float]:
    """Multiply two square matrices in bfloat16; returns the relative error against float32, and TFLOP/s."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).bfloat16() for _ in range(2))
    exact = a.float() @ b.float()
    error = ((a @ b).float() - exact).norm() / exact.norm()
    error, seconds = float(error), math.inf
    for _ in range(ROUNDS):  # a card that was idle is slow at first
        began = time.perf_counter()
        last = [a @ b for _ in range(REPEATS)][-1]
        last[0, 0].item()  # waits for it
        seconds = min(seconds, (time.perf_counter() - began) / REPEATS)
    return error, 2 * side**3 / seconds / 1e12


def _problems(answers: dict[str, Answer], dtype: str, trainers: set[str]) -> Iterator[str]:
    """Find the faults of the nodes, one sentence each.

    Args:
        answers: of each node, by its name.
        dtype: train.dtype.
        trainers: the nodes that training may use.
    """
    for name, answer in answers.items():
        for problem in faults_of(answer, dtype):
            yield f"node {name}: {problem}"
    able = {name: answer for name, answer in answers.items() if answer.card is not None}
    yield from _apart("NCCL", {name: answer.nccl for name, answer in able.items()}, "use one image on all nodes")
    yield from _apart("cuDNN", {name: str(answer.cudnn) for name, answer in able.items()}, "use one image on all nodes")
    cards = {name: answer.card for name, answer in able.items() if name in trainers}
    yield from _apart("the card", cards, "let training use one kind of node (cluster.resources or cluster.labels)")
    for name, answer in able.items():
        fastest = max(other.teraflops for other in able.values() if other.card == answer.card)
        if answer.teraflops < SLOW * fastest:
            yield (
                f"node {name}: its {answer.card} computes {answer.teraflops:g} TFLOP/s, another one {fastest:g}; is it "
                "throttled, or used by someone else?"
            )


def faults_of(answer: Answer, dtype: str) -> Iterator[str]:
    """Find the faults of one node by itself."""
    if answer.cuda is None:
        yield f"torch {answer.torch} is built for CPUs alone; install the wheel for CUDA"
    elif answer.driver and int(answer.driver.split(".")[0]) < (least := DRIVERS.get(answer.cuda.split(".")[0], 0)):
        yield (
            f"NVIDIA driver {answer.driver} is older than {least}, which torch {answer.torch} (CUDA {answer.cuda}) "
            "needs; take a machine image with a newer driver, or a torch wheel of an older CUDA"
        )
    elif answer.card is None:
        yield "torch.cuda.is_available() is false, though Ray counts GPUs there; does nvidia-smi work in the container?"
    if answer.card is not None and dtype == "bfloat16" and answer.capability < BFLOAT16_FROM:
        major, minor = answer.capability
        yield (
            f"{answer.card} has capability {major}.{minor}, and bfloat16 needs 8.0; set train.dtype = "
            '"float32", or use other cards'
        )
    if not answer.error <= LARGEST_ERROR:
        yield f"bfloat16 products are off by {answer.error:.2g}, 0.002 is usual; take the node out, its GPU is faulty"
    if answer.card is not None and answer.free < FREE_MEMORY * answer.memory:
        used = (answer.memory - answer.free) / 2**30
        yield f"{used:.1f} GiB of a GPU that Ray thinks is free are used; end the other processes (see nvidia-smi)"
    if answer.shm < SHM_BYTES:
        yield (
            f"/dev/shm has {answer.shm / 1e9:.1f} GB, {SHM_BYTES / 1e9:g} are needed; give the container more (docker: "
            "--shm-size, Kubernetes: a volume in memory)"
        )
    if answer.disk < DISK_BYTES:
        yield f"{answer.disk / 1e9:.1f} GB of the temporary folder's disk are free, {DISK_BYTES / 1e9:g} are needed"


def _apart(what: str, values: dict[str, str | None], fix: str) -> Iterator[str]:
    """A sentence where nodes that must agree do not."""
    nodes = defaultdict(list)
    for name, value in values.items():
        nodes[value].append(name)
    if len(nodes) > 1:
        each = "; ".join(f"{value} on node {', '.join(names)}" for value, names in nodes.items())
        yield f"{what} differs: {each}; {fix}"
