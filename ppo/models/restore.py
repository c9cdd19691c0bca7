"""Finding a value head among saved weights: in a folder or on the Hub, whole or sharded, safetensors or pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import safe_open
from torch import Tensor

Source = str | os.PathLike[str]
# Keywords of a load that say where on the Hub a file is; the same names everywhere.
HUB_KEYWORDS = ("token", "revision", "cache_dir", "local_files_only", "subfolder")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_file(source: Source, name: str, hub: Mapping[str, Any]) -> Path | None:
    """The file `name` of a local folder or of a Hub repository; None where there is none.

    Raises:
        ValueError: `source` is neither a folder nor a name that the Hub allows.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / (hub.get("subfolder") or "") / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(os.fspath(source), name, **hub))
    except EntryNotFoundError:
        return None
    except HFValidationError:
        raise ValueError(
            f"{os.fspath(source)!r} is neither a folder here nor the name of a Hub repository. Give a folder that "
            "save_pretrained wrote, or a name such as 'openai-community/gpt2'."
        ) from None


def read_head(source: Source, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """The saved value head, as `summary.weight` and `summary.bias`; empty where nothing of it is saved."""
    local = Path(source).is_dir()
    for name in WEIGHTS:
        path = find_file(source, name, hub)
        if path is None:
            continue
        head = of_head(read_tensors(path, "v_head"))
        # A folder is looked through to the end; from the Hub no second copy of the weights is fetched for it.
        if head or not local:
            return head
    for name in INDICES:
        path = find_file(source, name, hub)
        if path is not None:
            return _from_shards(source, path, hub)
    return {}


def _from_shards(source: Source, index: Path, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    head: dict[str, Tensor] = {}
    for shard in sorted({file for name, file in where.items() if "v_head" in name.split(".")}):
        path = find_file(source, shard, hub)
        if path is None:
            raise ValueError(
                f"{index} says that the value head is in {shard!r}, which {os.fspath(source)} lacks. Copy the missing "
                "shard there, or save the model again."
            )
        head |= of_head(read_tensors(path, "v_head"))
    return head


def no_head_saved(source: Source) -> str:
    """The warning for a folder in which no value head was found."""
    return (
        f"{os.fspath(source)!r} has no value head saved with it: this one starts from its initialisation and needs "
        "training."
    )


def of_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whatever belongs to a value head, by its name behind `v_head.`."""
    return {name.split("v_head.", 1)[1]: tensor for name, tensor in tensors.items() if "v_head" in name.split(".")}


def read_tensors(path: Path, *parts: str) -> dict[str, Tensor]:
    """The tensors of one file that have one of `parts` between the dots of their name; others are not read."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in _with(parts, file.keys())}
    pickled = torch.load(path, map_location="cpu", weights_only=True)
    return {name: pickled[name] for name in _with(parts, pickled)}


def _with(parts: tuple[str, ...], names: Iterable[str]) -> list[str]:
    return [name for name in names if set(parts) & set(name.split("."))]
