"""The optimizer's groups of parameters, which have learning rates of their own."""

from __future__ import annotations

from typing import Any

from torch import nn


def groups_of(model: nn.Module, trainable: list[Any], second_rate: float) -> tuple[list[dict[str, Any]], list[float]]:
    """The optimizer's groups of parameters, and the multiple of the learning rate that each of them has."""
    if second_rate == 1:
        return [{"params": trainable}], [1.0]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    second = [p for name, p in named if ".lora_B." in name or ".lora_embedding_B." in name]
    first = [p for name, p in named if not (".lora_B." in name or ".lora_embedding_B." in name)]
    return [{"params": first}, {"params": second}], [1.0, second_rate]
