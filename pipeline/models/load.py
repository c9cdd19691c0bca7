"""A model folder -> the frozen model on the device of this process, or on several GPUs."""

from __future__ import annotations

from pathlib import Path

import torch

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.model_config import is_x_transformers, read_config
from dpo.lm.models import Model, freeze, load_model
from pipeline.models.device import Device


def load_frozen(folder: str, dtype: str, device: Device, worn: Worn = ALONE) -> Model:
    """Load a frozen model. On GPUs each weight of a Hugging Face model goes straight to the card of its layer.

    Args:
        worn: an adapter, and how the weights are quantized.
    """
    place, kind = device.take(), getattr(torch, dtype)
    if device.kind == "cpu" or is_x_transformers(read_config(folder)):
        return freeze(load_model(folder, kind, worn=worn)).to(place)  # type: ignore[return-value]
    from dpo.lm.spread import load_spread  # which imports transformers

    cards = [torch.device(device.kind, number) for number in range(device.devices)]
    return freeze(load_spread(Path(folder), kind, cards, worn))  # type: ignore[return-value]
