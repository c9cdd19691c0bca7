"""The device of a frozen model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Device(NamedTuple):
    """A kind of device, and the CPU threads that go with it; None: as many as torch takes by itself."""

    kind: str  # "cpu" or "cuda"
    threads: int | None
    devices: int = 1  # of this kind, which one model lies on

    def take(self) -> torch.device:
        """Set this process's threads, and return the device."""
        import torch  # whoever only says where a model is to lie does without

        from dpo.lm.kernels import choose_kernels

        choose_kernels()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return torch.device(self.kind)


def device_of(cpus: int, processes: int, gpus: int) -> Device:
    """The device of one of several processes on this machine.

    Args:
        cpus: logical CPUs of each process.
        processes: how many there are.
        gpus: GPUs of each process; beside them, threads are left alone.
    """
    return Device("cuda", None, gpus) if gpus else Device("cpu", max(1, min(cpus, (os.cpu_count() or 1) // processes)))
