"""The function of an adapter on its base, from their files: a digest of its function, and whether it changes anything.

Two adapters with one digest are one function, whatever their folders, names and files are. So the tensors count in
float32, and the factor of each pair as a number, however it is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from dpo.lm.adapter_files import HEADS, PREFIX, TENSORS, AdapterError, pattern_of, rank_of, read_adapter_config
from dpo.lm.weight_files import shard_files

PAIR = re.compile(r"(?P<module>.*)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B))(?:\.(?P<of>weight|bias))?$")
NORM = re.compile(r"(?P<module>.*)\.lora_magnitude_vector(?:\.weight)?$")
TOKENS = ".token_adapter.trainable_tokens_delta"
COPY = re.compile(r"(?P<module>.*)\.base_layer\.(?P<of>weight|bias)$")  # of the base, which peft writes beside it
EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
Lookup = Callable[[str], "Tensor | None"]  # a tensor of the base by name; None where its files have none of that name


class Described(NamedTuple):
    """An adapter, as far as its identity goes."""

    digest: str
    neutral: bool  # with it, the base computes what it computes without it


def describe(adapter: Path, base: Path, dtype: str) -> Described:
    """Describe an adapter folder put on a base.

    Args:
        dtype: in which both compute.

    Raises:
        AdapterError: it brings other weights of its base along, or holds weights that are not finite.
    """
    config, of_base = read_adapter_config(adapter), _lookup(base)
    entries: list[list[Any]] = []
    pairs: dict[str, list[Tensor]] = {}
    neutral = True
    for name, tensor in adapter_tensors(adapter):
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f'adapter "{adapter}" has weights that are infinite or NaN ({name}). Take an earlier checkpoint of it.'
            )
        pair, norm, copy = PAIR.match(name), NORM.match(name), COPY.match(name)
        if copy is not None and pair is None:
            _refuse_other_copy(adapter, f"{copy['module']}.{copy['of']}", tensor, of_base)
            continue
        kind, scaling = "saved", 1.0
        if pair is not None:
            kind, scaling = pair["part"] + (".bias" if pair["of"] == "bias" else ""), factor_of(config, pair["module"])
            pairs.setdefault(pair["module"], []).append(tensor)
        elif norm is not None:
            kind = "norm"
            neutral = neutral and _is_norm(tensor, of_base(f"{norm['module']}.weight"), dtype, config)
        elif name.endswith(TOKENS):
            kind = "tokens"
            neutral = neutral and _are_rows(name, tensor, of_base, config)
        else:
            own = _of_saved(name, of_base)
            neutral = neutral and own is not None and bool(torch.equal(own.float(), tensor.float()))
        entries.append([_plain(name), kind, _digest(tensor), scaling])
    neutral = neutral and all(any(not bool(t.any()) for t in tensors) for tensors in pairs.values())
    flags = {key: config.get(key) or None for key in ("use_dora", "fan_in_fan_out", "trainable_token_indices")}
    told = json.dumps([sorted(entries), flags], sort_keys=True)
    return Described(hashlib.sha256(told.encode()).hexdigest(), neutral)


def adapter_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an adapter under the names of its base's modules."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        for name in sorted(file.keys()):
            yield name.removeprefix(PREFIX), file.get_tensor(name)


def factor_of(config: dict[str, Any], module: str) -> float:
    """The factor of a pair's product: alpha / r, or alpha / sqrt(r), with what patterns say of this module."""
    alpha, r = config.get("alpha_pattern") or {}, rank_of(config, module)
    factor = alpha.get(pattern_of(alpha, module), config["lora_alpha"])
    return factor / (math.sqrt(r) if config.get("use_rslora") else r)


def _of_saved(name: str, of_base: Lookup) -> Tensor | None:
    """The base's own tensor of a module that is trained whole; a tied head has that of the embedding."""
    own = of_base(name)
    if own is None and name.partition(".")[0] in HEADS:
        own = next(filter(lambda found: found is not None, map(of_base, EMBEDDINGS)), None)
    return own


def _lookup(base: Path) -> Lookup:
    files = shard_files(base)

    def find(name: str) -> Tensor | None:
        for path in files:
            with safe_open(path, framework="pt") as file:
                there = set(file.keys())
                for spelled in (name, name.partition(".")[2]):  # some files leave out the name of the whole body
                    if spelled in there:
                        return file.get_tensor(spelled)
        return None

    return find


def _is_norm(tensor: Tensor, own: Tensor | None, dtype: str, config: dict[str, Any]) -> bool:
    """Whether DoRA's norms are those of the base's rows, as they are computed in this type."""
    if own is None:
        return False
    matrix = own.to(getattr(torch, dtype))
    norm = torch.linalg.norm(matrix.T if config.get("fan_in_fan_out") else matrix, dim=1)
    return tensor.numel() == norm.numel() and bool(torch.equal(norm, tensor.flatten().to(norm.dtype)))


def _are_rows(name: str, tensor: Tensor, of_base: Lookup, config: dict[str, Any]) -> bool:
    """Whether trained tokens are still the base's."""
    indices = config.get("trainable_token_indices")
    own = of_base(f"{name.removesuffix(TOKENS)}.weight")
    return own is not None and isinstance(indices, list) and bool(torch.equal(own[indices].float(), tensor.float()))


def _refuse_other_copy(adapter: Path, name: str, tensor: Tensor, of_base: Lookup) -> None:
    own = of_base(name)
    if own is None or own.shape != tensor.shape or not torch.equal(own.float(), tensor.float()):
        raise AdapterError(
            f'adapter "{adapter}" brings weights of its base along ({name}), and they are not those of policy.path, '
            "for example because tokens were added. Take the base that it was trained on."
        )


def _plain(name: str) -> str:
    """A name that all versions of peft share."""
    return re.sub(r"\.(weight)$", "", name)


def _digest(tensor: Tensor) -> str:
    whole = tensor.float().contiguous()
    return hashlib.sha256(f"{tuple(whole.shape)}".encode() + whole.numpy().tobytes()).hexdigest()
