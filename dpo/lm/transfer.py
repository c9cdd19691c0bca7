"""Tensors between the host and a device: in as few copies as possible, and without a wait where none is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ALIGNMENT = 8  # bytes: no data type is wider


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors of one device to another, all of them in one copy; they share memory there.

    From the host to a GPU they go through pinned memory: the GPU copies them after the work that it already has, and
    the host does not wait for it.
    """
    if not tensors or device == tensors[0].device:
        return list(tensors)
    from_host = device.type == "cuda" and tensors[0].device.type == "cpu"
    return unpacked(packed(tensors, from_host).to(device, non_blocking=True), tensors)


def packed(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """Copy tensors of one device into one stretch of bytes."""
    places = _places(tensors)
    buffer = torch.empty(places[-1].stop, dtype=torch.uint8, device=tensors[0].device, pin_memory=pinned)
    for tensor, place in zip(tensors, places, strict=True):
        buffer[place] = tensor.contiguous().view(-1).view(torch.uint8)
    return buffer


def unpacked(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """View the bytes as the tensors that were packed, of the shapes and types of `like`."""
    places = _places(like)
    return [buffer[place].view(tensor.dtype).view(tensor.shape) for tensor, place in zip(like, places, strict=True)]


def _places(tensors: Sequence[Tensor]) -> list[slice]:
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT
    return [slice(start, start + tensor.nbytes) for start, tensor in zip(starts, tensors, strict=True)]


def begin_reading(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host. Returns a function that waits for it, and only then is it read.

    Meanwhile a GPU can be given more work.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.device(tensor.device):
        here.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

    def read() -> Tensor:
        copied.synchronize()
        return here

    return read
