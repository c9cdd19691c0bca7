"""Weights by name: from a network to disk, and from disk into a network.

The names are those of the network's own module. A tensor with two names (tied embeddings) is written once, under the
first name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpo.lm.weight_files import INDEX, WeightsError, shard_files

Gatherer = Callable[[Tensor], AbstractContextManager[Any]]
SHARD_BYTES = 4 * 2**30  # small enough to fit into memory next to the model, large enough for few files


def canonical_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, then the persistent buffers, each tensor once.

    Under ZeRO-3 the parameters are partitioned: `whole_tensors` gathers each one.
    """
    yield from network.named_parameters()
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    persistent = network.state_dict(keep_vars=True).keys() - parameters
    yield from ((name, buffer) for name, buffer in network.named_buffers() if name in persistent)


def partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has divided a tensor among the ranks, none of which then holds it whole."""
    return hasattr(tensor, "ds_id")  # the mark that DeepSpeed leaves


def whole_tensors(named: Iterable[tuple[str, Tensor]], gather: Gatherer) -> Iterator[tuple[str, Tensor]]:
    """Yield named tensors one at a time, each of them whole and without gradient. Every rank has to take them all.

    Args:
        gather: a context in which a partitioned tensor is whole; asked for such tensors alone.
    """
    for name, tensor in named:
        if partitioned(tensor):
            with gather(tensor):
                yield name, tensor.detach().clone()
        else:
            yield name, tensor.detach()


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write named tensors one by one into safetensors shards of at most about SHARD_BYTES."""
    shards: list[dict[str, Tensor]] = [{}]
    where: dict[str, str] = {}
    size = total = 0
    for name, tensor in tensors:
        weight = tensor.numel() * tensor.element_size()
        if shards[-1] and size + weight > SHARD_BYTES:
            _write_shard(folder, len(shards), shards[-1], where)
            shards[-1] = {}
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().to("cpu").contiguous()
        size, total = size + weight, total + weight
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    _write_shard(folder, len(shards), shards[-1], where)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(folder: Path, number: int, tensors: dict[str, Tensor], where: dict[str, str]) -> None:
    name = f"model-{number:05}.safetensors"
    save_file(tensors, folder / name, metadata={"format": "pt"})
    where.update(dict.fromkeys(tensors, name))


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor on disk, one at a time."""
    for path in shard_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def fill(network: nn.Module, folder: Path, gathered: Gatherer = nullcontext) -> None:
    """Copy the weights of a folder into a network, tensor by tensor.

    Args:
        gathered: a context manager that gathers a partitioned parameter and partitions it again at the end.

    Raises:
        WeightsError: names or shapes differ.
    """
    wanted = dict(canonical_tensors(network))
    for name, value in read_weights(folder):
        target = wanted.pop(name, None)
        if target is None:
            raise WeightsError(
                f"{folder} has weights named {name!r}, but the model of its config.json has no such weights"
            )
        shape = tuple(getattr(target, "ds_shape", target.shape))
        if shape != tuple(value.shape):
            raise WeightsError(f"{folder}: {name!r} has shape {tuple(value.shape)}, but the model needs {shape}")
        with gathered(target), torch.no_grad():
            target.copy_(value)
    if wanted:
        raise WeightsError(f"{folder} lacks {len(wanted)} weights of the model, {next(iter(wanted))!r} first")
