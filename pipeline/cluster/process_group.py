"""The part of Ray Train that sets up torch.distributed, with torch imported by the workers alone.

`ray.train.torch` loads torch wherever it is imported, also in the driver and in Ray Train's controller.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train import BackendConfig, get_context
from ray.train.backend import Backend

LEAVING_SECONDS = 30  # for a process group to be taken down; a worker that hangs is ended after that


@dataclass
class ProcessGroup(BackendConfig):
    """A torch process group over all workers: gloo for what is on CPUs, and NCCL for what is on GPUs.

    What workers agree upon, such as when to save, then travels between CPUs and makes no GPU wait.
    """

    gpus: bool
    timeout_seconds: int = 600  # of a collective; nothing that one rank does alone may take longer

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroupBackend


class _ProcessGroupBackend(Backend):
    share_cuda_visible_devices = True  # the workers of a node see each other's GPUs, as NCCL needs

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Let every worker join one process group."""
        address, port = worker_group.execute_single(0, _address)
        worker_group.execute(_join, address, port, backend_config.gpus, backend_config.timeout_seconds)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Take the process group down."""
        leaving = worker_group.execute_async(_leave)
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVING_SECONDS)


def _address() -> tuple[str, int]:
    """An address of this node that the other workers reach, and a free port."""
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return host, probe.getsockname()[1]


def _join(address: str, port: int, gpus: bool, timeout_seconds: int) -> None:
    context = get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    import torch.distributed as dist

    if gpus:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # so that a lost peer ends a collective
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout_seconds))


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
