"""Frozen weights in 4 or 8 bits by bitsandbytes: the options with which transformers loads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def quantization(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """The options of a loader for weights kept as `kind`: "none", "nf4" or "int8".

    Args:
        dtype: in which products are computed.
    """
    if kind == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if kind == "nf4":
        options: Any = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    else:
        options = {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**options)}


def device_here() -> dict[str, Any]:
    """The option that loads onto the device of this process: weights are quantized where they will be."""
    return {"device_map": {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}}


def with_gradients_(network: nn.Module) -> None:
    """Let 4-bit layers compute in evaluation mode as they do in training mode, in place.

    On CPUs with certain instructions bitsandbytes would otherwise pack their weights, with rounded scales, for products
    that have no gradient.
    """
    from bitsandbytes.nn import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def is_quantized(network: nn.Module) -> bool:
    """Whether some weights are integers, whose products cannot be computed in another type."""
    return any(not parameter.is_floating_point() for parameter in network.parameters())
