"""Where the value head of a model stands that is spread over several devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def is_spread(device_map: Mapping[str, Any]) -> bool:
    """Whether a map names several devices."""
    return len({str(place) for place in device_map.values()}) > 1


def refuse_offload(device_map: Mapping[str, Any]) -> None:
    """Raise ValueError where part of a model lies outside the devices that compute."""
    outside = ("cpu", "disk") if is_spread(device_map) else ("disk",)
    offloaded = [name for name, place in device_map.items() if str(place) in outside]
    if offloaded:
        raise ValueError(
            f"The model's device map puts {', '.join(map(repr, offloaded))} on the CPU or the disk while it computes "
            "elsewhere, and a value head cannot be trained through offloaded layers. Give a device_map without "
            "offload, more device memory, or a quantised model."
        )


def first_device(device_map: Mapping[str, Any]) -> torch.device:
    """Where the model begins: maps list modules in the order of the computation."""
    return torch.device(next(iter(device_map.values())))


def lm_head_device(device_map: Mapping[str, Any], namings: Sequence[str]) -> torch.device:
    """Where the output head stands; a map that does not name it keeps it with its last entry."""
    for name, place in device_map.items():
        if any(naming in name for naming in namings):
            return torch.device(place)
    return torch.device(list(device_map.values())[-1])
