"""The safetensors files of a model folder, and a digest of their weights. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dpo.errors import InputError

INDEX = "model.safetensors.index.json"
CHUNK_BYTES = 1 << 24

# Safetensors' names of types -> torch's names, which are part of the digest.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip


class WeightsError(InputError):
    """Weights on disk are missing, damaged or do not fit the network."""


def shard_files(folder: Path) -> list[Path]:
    """List the safetensors files with a model's weights.

    Raises:
        WeightsError: there are none.
    """
    if (folder / INDEX).exists():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(
            f"{folder} holds no safetensors weights. Save the model with save_pretrained() and try again."
        )
    return files


def weights_digest(folder: Path) -> str:
    """Return a SHA-256 over name, type, shape and bytes of every tensor. It does not depend on folder or sharding."""
    lines = sorted(line for path in shard_files(folder) for line in _tensor_lines(path))
    return hashlib.sha256("\n".join(_untied(lines)).encode()).hexdigest()


def _tensor_lines(path: Path) -> Iterator[str]:
    """Yield `name type shape digest` of each tensor. Tensors are read in chunks, to need little memory.

    Raises:
        WeightsError: the file is not a safetensors file, or ends too early.
    """
    with path.open("rb") as file:
        header = _header(path, file)
        begin = file.tell()
        for name, tensor in header.items():
            first, last = tensor["data_offsets"]
            file.seek(begin + first)
            dtype, shape = DTYPES.get(tensor["dtype"], tensor["dtype"]), tuple(tensor["shape"])
            yield f"{name} torch.{dtype} {shape} {_digest(path, file, last - first)}"


def _header(path: Path, file: BinaryIO) -> dict[str, dict]:
    """Read the header of a safetensors file, which describes its tensors: 8 bytes of length, then JSON."""
    length = int.from_bytes(file.read(8), "little")
    try:
        if length > path.stat().st_size:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    except ValueError:
        raise WeightsError(f"{path} is not a safetensors file, or is damaged. Copy it again.") from None
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _digest(path: Path, file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        chunk = file.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise WeightsError(f"{path} ends before the end of its last tensor. Copy it again.")
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _untied(lines: list[str]) -> list[str]:
    """Drop an output head that repeats the input embedding, because only some tools write the tied copy."""
    heads = [line for line in lines if line.startswith(("lm_head.weight ", "embed_out.weight "))]
    others = [line for line in lines if line not in heads]
    contents = {line.partition(" ")[2] for line in others}
    return others + [head for head in heads if head.partition(" ")[2] not in contents]
