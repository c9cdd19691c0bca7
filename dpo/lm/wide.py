"""A network in float32 for the length of a block, whatever its dtype: whole where it is small, else layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dpo.lm.products import is_narrow
from dpo.lm.quantized import is_quantized
from dpo.lm.weights import partitioned

WHOLE = 250_000_000  # parameters up to which all are converted at once
SHARE_OF_FREE = 0.5  # of a GPU's free memory that a conversion may take

Gathered = Callable[[list[Tensor]], AbstractContextManager[Any]]  # a context in which partitioned tensors are whole


def no_gathering(_tensors: list[Tensor]) -> AbstractContextManager[Any]:
    return nullcontext()


@contextmanager
def in_float32(network: nn.Module, gathered: Gathered = no_gathering, convert: bool = True) -> Iterator[None]:
    """Hold all weights whole and in float32 inside the block, and exactly as they were behind it; also after an error.

    A layer of a large network is converted when it is called, and back behind its call.

    Args:
        gathered: with partitioned weights, a collective that makes some of them whole.
        convert: false: the weights are only made whole, and keep their dtype.
    """
    layers, outside = _parts(network)
    open_layers: dict[nn.Module, ExitStack] = {}

    def enter(layer: nn.Module, _args: Any) -> None:
        open_layers[layer] = ExitStack()
        open_layers[layer].enter_context(_converted(_tensors(layer), gathered, convert))

    def leave(layer: nn.Module, _args: Any, _out: Any) -> None:
        open_layers.pop(layer).close()

    with ExitStack() as stack:
        stack.enter_context(_converted(outside, gathered, convert))
        for layer in layers:
            for handle in (layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)):
                stack.callback(handle.remove)
        try:
            yield
        finally:
            for opened in open_layers.values():  # of a layer that raised
                opened.close()


def fits(network: nn.Module, device: torch.device) -> bool:
    """Whether a GPU has memory for the float32 copies that `in_float32` holds at once, and for what it gathers.

    Quantized weights have no such copies.
    """
    if is_quantized(network):
        return False
    if device.type != "cuda":
        return True
    layers, outside = _parts(network)
    needed = _bytes(outside) + max((_bytes(_tensors(layer)) for layer in layers), default=0)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed <= SHARE_OF_FREE * (torch.cuda.mem_get_info(device)[0] + held)


def _bytes(tensors: Any) -> int:
    """In float32, and those that are gathered once more in their own dtype."""
    return sum(_size(t) * (4 + (t.element_size() if partitioned(t) else 0)) for t in tensors)


def _size(tensor: Tensor) -> int:
    return getattr(tensor, "ds_numel", 0) or tensor.numel()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _parts(network: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    """The layers of a large network, and the tensors that lie in none."""
    layers = _layers(network)
    inside = {id(tensor) for layer in layers for tensor in _tensors(layer)}
    return layers, [tensor for tensor in _tensors(network) if id(tensor) not in inside]


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a large network: the members of its lists of modules, but of none that lies in another."""
    if sum(map(_size, network.parameters())) <= WHOLE:
        return []
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(_members(child))
            else:
                search(child)

    search(network)
    return found


def _members(modules: nn.ModuleList) -> Iterator[nn.Module]:
    """A list that holds lists, as x-transformers' does, has its layers in these."""
    for member in modules:
        if isinstance(member, nn.ModuleList):
            yield from _members(member)
        elif member is not None:  # as x-transformers' lists have where a layer has no such part
            yield member


@contextmanager
def _converted(tensors: Sequence[Tensor], gathered: Gathered, convert: bool) -> Iterator[None]:
    with gathered([t for t in tensors if partitioned(t)]):
        kept = [(t, t.data) for t in tensors if convert and is_narrow(t.dtype)]
        for tensor, data in kept:
            tensor.data = data.float()
        try:
            yield
        finally:
            for tensor, data in kept:
                tensor.data = data
