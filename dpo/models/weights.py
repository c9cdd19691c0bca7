"""Weights by name: out of a network, onto disk, back into a network, and their digest.

The names are those of the network's own module. A tensor that two names share (tied embeddings) is written once,
under the first of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpo.errors import InputError

SHARD_BYTES = 4 * 2**30  # small enough to hold in memory beside the model, large enough for few files
INDEX = "model.safetensors.index.json"


class WeightsError(InputError):
    """Weights on disk that are missing or do not fit the network."""


def canonical_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then the buffers that belong on disk, each tensor once.

    Under ZeRO-3 the parameters are partitioned: gather each before reading it.
    """
    yield from network.named_parameters()
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    persistent = network.state_dict(keep_vars=True).keys() - parameters
    yield from ((name, buffer) for name, buffer in network.named_buffers() if name in persistent)


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Stream named tensors into safetensors shards of at most about SHARD_BYTES."""
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


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights."""
    if (folder / INDEX).exists():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(
            f"{folder} holds no safetensors weights. Save the model with save_pretrained() and try again."
        )
    return files


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor on disk, one at a time."""
    for path in shard_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def fill(network: nn.Module, folder: Path) -> None:
    """Copy the weights of a folder into a network, tensor by tensor; partitioned parameters are gathered for it.

    Raises:
        WeightsError: names or shapes differ.
    """
    wanted = dict(canonical_tensors(network))
    for name, value in read_weights(folder):
        target = wanted.pop(name, None)
        if target is None:
            raise WeightsError(f"{folder} has weights named {name!r}, which the model that config.json describes lacks")
        shape = tuple(getattr(target, "ds_shape", target.shape))
        if shape != tuple(value.shape):
            raise WeightsError(f"{folder}: {name!r} has shape {tuple(value.shape)} and the model needs {shape}")
        with _gathered(target), torch.no_grad():
            target.copy_(value)
    if wanted:
        raise WeightsError(f"{folder} lacks {len(wanted)} weights of the model, {next(iter(wanted))!r} first")


def _gathered(tensor: Tensor) -> AbstractContextManager[object]:
    if not hasattr(tensor, "ds_id"):  # the mark that DeepSpeed leaves on a partitioned parameter
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([tensor], modifier_rank=0)


def weights_digest(folder: Path) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes: what the weights are, wherever and however sharded."""
    lines = sorted(f"{name} {_tensor_digest(tensor)}" for name, tensor in read_weights(folder))
    return hashlib.sha256("\n".join(_untied(lines)).encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}"  # type: ignore[arg-type]


def _untied(lines: list[str]) -> list[str]:
    """Drop an output head that repeats the input embedding: some tools write the tied copy, some do not."""
    heads = [line for line in lines if line.startswith(("lm_head.weight ", "embed_out.weight "))]
    others = [line for line in lines if line not in heads]
    contents = {line.partition(" ")[2] for line in others}
    return others + [head for head in heads if head.partition(" ")[2] not in contents]
