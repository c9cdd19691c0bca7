"""A Hugging Face model whose layers lie on several devices. A batch passes through them one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.hf import HuggingFaceModel, load_network, wearing, without_dropout
from dpo.lm.model_config import ModelError
from dpo.lm.quantized import quantization

Places = dict[str, torch.device]  # name of a module -> its device


def load_spread(
    folder: Path,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    worn: Worn = ALONE,
) -> HuggingFaceModel:
    """Load a folder, each weight straight onto the device of its layer; every dropout is set to 0.

    Args:
        worn: an adapter, and how the weights are quantized.

    Raises:
        ModelError: the layers of the model cannot be told apart.
    """
    config = without_dropout(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    places = {"": devices[0]}  # the whole model
    if len(devices) > 1:
        with torch.device("meta"):
            places = places_of(AutoModelForCausalLM.from_config(config), devices)
    network = load_network(folder, config, dtype, device_map=places, **quantization(worn.quantize, dtype))
    if len(devices) > 1:
        _remove_hooks(network)
        follow_(network, places)
    return wearing(network, dtype, worn)


def places_of(network: PreTrainedModel, devices: Sequence[torch.device]) -> Places:
    """The device of each module: embeddings on the first, head and last norm on the last, layers in equal shares.

    Raises:
        ModelError: the network has no list of layers.
    """
    name, layers = _layers(network)
    first, last = devices[0], devices[-1]
    places: Places = {}
    at_first = at_last = 0
    for path, module in _beside(network, layers):
        if module is network.get_output_embeddings() or "norm" in type(module).__name__.lower():
            places[path], at_last = last, at_last + _size(module)
        else:
            places[path], at_first = first, at_first + _size(module)
    total, before = at_first + _size(layers) + at_last, at_first
    for number, layer in enumerate(layers):
        middle = before + _size(layer) / 2
        places[f"{name}.{number}"] = devices[int(len(devices) * middle / total)]
        before += _size(layer)
    return places


def follow_(network: PreTrainedModel, places: Places) -> None:
    """Let the inputs of each placed module follow it to its device, in place.

    A head that is tied to the embeddings gets a copy of their weight, since it lies elsewhere. Nobody may train that.
    """
    head: Any = network.get_output_embeddings()
    embeddings: Any = network.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for name, device in places.items():
        module = network.get_submodule(name).to(device)
        # Before other hooks, which then find all inputs on one device.
        module.register_forward_pre_hook(partial(_fetch, device), with_kwargs=True, prepend=True)


def _layers(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder layers."""
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], GradientCheckpointingLayer)
    ]
    if not found:
        raise ModelError(
            f"{type(network).__name__} has no list of layers that could lie on several GPUs. Set "
            'reference.gpus_per_actor = 1, or reference.by = "trainers".'
        )
    return max(found, key=lambda named: len(named[1]))


def _beside(module: nn.Module, layers: nn.ModuleList, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The names of the modules beside the layers, and these modules."""
    for name, child in module.named_children():
        if child is layers:
            continue
        if any(inner is layers for inner in child.modules()):
            yield from _beside(child, layers, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _remove_hooks(network: PreTrainedModel) -> None:
    """Take away the hooks that transformers' loader leaves: they stand in the place of each module's own forward."""
    remove_hook_from_submodules(network)
    for module in network.modules():
        vars(module).pop("forward", None)


def _fetch(
    device: torch.device, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    return _moved(args, device), _moved(kwargs, device)


def _moved(value: Any, device: torch.device) -> Any:
    """The value with its tensors on a device, also those in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(inner, device) for inner in value)
    if type(value) is dict:
        return {name: _moved(inner, device) for name, inner in value.items()}
    return value
