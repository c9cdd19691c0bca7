"""Model folders whose tensors have the names and layouts that transformers holds in memory, not those of its files.

Programs that save `state_dict()` write them, and transformers loads them as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dpo.lm.judge import library_class
from dpo.lm.on_disk import on_disk
from dpo.lm.weight_files import Header, describe_tensor, digest_of, shard_files, tensor_headers
from dpo.lm.weights import canonical_tensors


def is_held(folder: Path) -> bool:
    """Whether a folder's tensors have names of the memory; it must be one that `judge` lets pass."""
    network, headers = _network(folder), tensor_headers(folder)
    names = {name for name, _ in on_disk(network, canonical_tensors(network))} | {*network.all_tied_weights_keys}
    return headers.keys() <= network.state_dict().keys() and not headers.keys() <= names


def digest_on_disk(folder: Path) -> str:
    """Return the digest that a held folder's model has in the library's files, so that both are one reference."""
    network = _network(folder)
    found = on_disk(network, _in_order(folder, [name for name, _ in canonical_tensors(network)]))
    return digest_of(_described(name, tensor) for name, tensor in found)


def _network(folder: Path) -> Any:
    config, kind = library_class(folder)
    with torch.device("meta"):
        return kind(config)


def _in_order(folder: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of a folder in the order of these names, whichever shard holds them; read one by one."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in shard_files(folder)]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it is no dict)
        for name in names:
            if name in where:
                yield name, where[name].get_tensor(name)


def _described(name: str, tensor: Tensor) -> str:
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    header = Header(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    return describe_tensor(name, header, hashlib.sha256(content).hexdigest())
