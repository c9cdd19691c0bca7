"""The device of a training worker, decided here alone: for torch, for DeepSpeed and for the kernels."""

from __future__ import annotations

import os

import torch

from dpo.lm.kernels import choose_kernels


def settle(device: torch.device, deterministic: bool) -> torch.device:
    """Make this process compute on a device. DeepSpeed is imported after this: it decides once, when it is imported.

    On its own DeepSpeed takes a GPU wherever torch sees one, also for a worker that asked for none.

    Args:
        device: as Ray gave it to the worker.
        deterministic: as in `choose_kernels`.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    choose_kernels(deterministic)
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)
        torch.cuda.set_device(device)
    return device


def occupy(device: torch.device, threads: int | None) -> None:
    """Let the calling thread compute on a device; each thread has its own current GPU.

    Args:
        threads: CPU threads of an operator; None: as torch takes by itself.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
