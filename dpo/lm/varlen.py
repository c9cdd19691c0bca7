"""Attention of all segments in one call of torch's kernel for sequences of several lengths, on a GPU.

H heads, D channels per head, T positions in the one row with all groups, K keys of all segments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpo.lm.segments import Segments

KERNEL_TAKES = {"cuda": (torch.bfloat16, torch.float16)}  # kind of device: dtypes
WIDE_HEADS = ((8, 0), (9, 0), (10, 0))  # compute capabilities on which heads above 192 channels have a backward pass


def takes(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel computes such heads: up to 256 channels in steps of 8, compute capability 8 or above."""
    channels = query.shape[-1]
    if query.dtype not in KERNEL_TAKES.get(query.device.type, ()):
        return False
    if channels % 8 or channels > 256 or value.shape[-1] != channels:
        return False
    capability = torch.cuda.get_device_capability(query.device) if query.device.type == "cuda" else WIDE_HEADS[0]
    return capability >= (8, 0) and (channels <= 192 or capability in WIDE_HEADS)


class Kernel:
    """A function such as `torch.nn.attention.varlen.varlen_attn`, under the argument names of its version."""

    def __init__(self, function: Callable[..., Any]):
        names = inspect.signature(function).parameters
        self.function = function
        self.causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
        self.takes_groups = "enable_gqa" in names
        self.takes_splits = "num_splits" in names and torch.version.hip is None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
        """Compute [T, H, D] from query [T, H, D], key and value [K, heads, D]; H is a multiple of their heads."""
        options = {"scale": scale, **self.causal}
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1 and self.takes_groups:
            options["enable_gqa"] = True
        elif repeats > 1:
            key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
        if self.takes_splits and not torch.is_grad_enabled():
            options["num_splits"] = 1  # a score then does not depend on what else is in its batch
        ends = segments.query_ends, segments.key_ends, segments.longest_query, segments.longest_key
        return self.function(query, key, value, *ends, **options)


@cache
def installed() -> Kernel:
    """Return the kernel of the installed torch."""
    from torch.nn.attention import varlen  # imported where a GPU asks for it

    return Kernel(varlen.varlen_attn)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None, kernel: Kernel
) -> Tensor:
    """Compute what `attention.shared_attention` does, from the same arguments, in one call.

    Queries stay where they are. Keys and values of a shared part are read once for each segment that sees them; where
    nothing is shared, they stay as well.
    """
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    if segments.rows is not None:
        key, value = (part.index_select(0, segments.rows) for part in (key, value))
    return kernel(query, key, value, segments, scale).transpose(0, 1)[None]
