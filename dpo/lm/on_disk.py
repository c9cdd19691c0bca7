"""Tensors of a network of transformers -> those of its files, where a type has other names or layouts in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from dpo.lm.model_config import ModelError
from dpo.lm.weights import canonical_tensors, partitioned

LAYER = re.compile(r".*?\.\d+\.")  # the name of a tensor up to its layer's number


def on_disk(network: Any, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Turn whole tensors of a network into those of the library's files, a layer at a time.

    A type whose files join tensors of several layers is turned at once, which takes memory for all of them.
    """
    named = ((_saved_name(network, name), tensor) for name, tensor in tensors)
    for layer in _layers(named) if separable(network) else [dict(named)]:
        yield from revert_weight_conversion(network, layer).items()


def separable(network: Any) -> bool:
    """Whether the library gives each layer the same tensors alone as it does with all others."""
    empty = {name: _empty(tensor) for name, tensor in canonical_tensors(network)}
    at_once = _shapes(revert_weight_conversion(network, empty))
    by_layer = [_shapes(revert_weight_conversion(network, layer)) for layer in _layers(empty.items())]
    found = {name: shape for layer in by_layer for name, shape in layer.items()}
    return found == at_once and sum(map(len, by_layer)) == len(found)


def refuse_across_layers(network: Any) -> None:
    """Refuse a network that ZeRO-3 has divided and whose files join several layers, which no rank holds together.

    Raises:
        ModelError: it is such a network.
    """
    if any(partitioned(parameter) for parameter in network.parameters()) and not separable(network):
        raise ModelError(
            f"The files of a {type(network).__name__} join tensors of several layers, so it cannot be written a layer "
            "at a time, as ZeRO-3 needs. Set deepspeed.stage to 2 or less."
        )


def _saved_name(network: Any, name: str) -> str:
    """The name under which the library saves a tensor that has several."""
    saved = network.all_tied_weights_keys.get(name, name)
    same = saved != name and network.get_parameter(saved) is network.get_parameter(name)
    return saved if same else name


def _layers(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Cut tensors into layers; those between two layers stand together."""
    for _, members in groupby(tensors, key=lambda named: (found := LAYER.match(named[0])) and found.group()):
        yield dict(members)


def _empty(tensor: Any) -> Tensor:
    """A tensor of the same whole shape without numbers; under ZeRO-3 the shape is in DeepSpeed's mark."""
    return torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
