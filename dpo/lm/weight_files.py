"""The safetensors files of a model folder, their headers, and a digest of their weights. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dpo.errors import InputError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS_POINTER = b"version "  # the first bytes of a file that Git LFS has not fetched
CHUNK_BYTES = 1 << 24

# Safetensors' names of types -> torch's names, which are part of the digest.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip


class WeightsError(InputError):
    """Weights on disk are missing, damaged or do not fit the network."""


class Header(NamedTuple):
    """A tensor on disk, without its numbers."""

    dtype: str  # as torch names it
    shape: tuple[int, ...]


def shard_files(folder: Path) -> list[Path]:
    """List the safetensors files with a model's weights: one file, or those that an index names.

    Raises:
        WeightsError: they are not there.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists():
        return [whole]
    if not index.exists():
        raise WeightsError(_without_weights(folder))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{index} is not an index of safetensors files, or is damaged. Copy it again.") from None
    files = [folder / str(name) for name in sorted(names)]
    lacking = [path.name for path in files if not path.is_file()]
    if lacking or not files:
        raise WeightsError(
            f"{folder} lacks {len(lacking)} of the {len(files)} files that {INDEX} names, {', '.join(lacking[:1])} "
            "first. Copy the folder again."
        )
    return files


def _without_weights(folder: Path) -> str:
    """Say what a folder without safetensors weights holds instead."""
    save = "Load it where it can be loaded, and save it with save_pretrained()"
    names = sorted(path.name for path in folder.iterdir())
    for end, kind, mend in (
        (
            "adapter_model.safetensors",
            "an adapter",
            "Name it in policy.adapter.path, and its base model in policy.path",
        ),
        (".safetensors", f"weights under another name than {WHOLE}", f"Name the file {WHOLE}, or {save.lower()}"),
        (".bin", "weights in the pickle format", save),
        (".gguf", "GGUF weights", "Take the model's folder in the format of transformers"),
    ):
        found = [name for name in names if name.endswith(end)]
        if found:
            return f"{folder} holds no safetensors weights of a model, but {kind} ({found[0]}). {mend}, and try again."
    return f"{folder} holds no safetensors weights. Save the model with save_pretrained() and try again."


def tensor_headers(folder: Path) -> dict[str, Header]:
    """Read name, type and shape of every tensor of a model folder; of the weights themselves nothing is read.

    Raises:
        WeightsError: a file is missing, is no safetensors file, or has another size than its header says.
    """
    return tensor_headers_of(shard_files(folder))


def tensor_headers_of(files: Iterable[Path]) -> dict[str, Header]:
    """Read name, type and shape of every tensor of some safetensors files, as `tensor_headers` does of a folder's."""
    found: dict[str, Header] = {}
    for path in files:
        with path.open("rb") as file:
            header = _header(path, file)
            end = file.tell() + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end != path.stat().st_size:
            raise WeightsError(
                f"{path} has {path.stat().st_size:,} bytes, and its header says {end:,}: it is damaged. Copy it again."
            )
        for name, tensor in header.items():
            found[name] = Header(DTYPES.get(tensor["dtype"]) or tensor["dtype"], tuple(tensor["shape"]))
    return found


def unlike(written: dict[str, Header], start: dict[str, Header], dtype: str) -> list[str]:
    """Say how tensors that were written differ from those that training started from, a text for each tensor.

    Args:
        dtype: that of training, which floating-point tensors may have instead of their own.
    """
    found = []
    for name in sorted(written.keys() | start.keys()):
        if name not in written:
            found.append(f"{name} was not written")
        elif name not in start:
            found.append(f"{name} is none of the start's")
        elif written[name].shape != start[name].shape:
            found.append(f"{name} is {by(written[name].shape)}, and {by(start[name].shape)} in the start")
        elif not _same_kind(written[name].dtype, start[name].dtype, dtype):
            found.append(f"{name} is {written[name].dtype}, and {start[name].dtype} in the start")
    return found


def by(shape: tuple[int, ...]) -> str:
    """The shape of a tensor in words."""
    return " x ".join(map(str, shape)) or "a number"


def _same_kind(written: str, start: str, dtype: str) -> bool:
    return written == start or ("float" in start and written == dtype)


def weights_digest(folder: Path) -> str:
    """Return a SHA-256 over name, type, shape and bytes of every tensor. It does not depend on folder or sharding."""
    return digest_of(line for path in shard_files(folder) for line in _tensor_lines(path))


def digest_of(described: Iterable[str]) -> str:
    """Return the digest of tensors as `describe_tensor` describes them, in any order."""
    lines = sorted(described)
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
            header_of = Header(DTYPES.get(tensor["dtype"]) or tensor["dtype"], tuple(tensor["shape"]))
            yield describe_tensor(name, header_of, _digest(path, file, last - first))


def describe_tensor(name: str, header: Header, digest: str) -> str:
    """A tensor as a line of which a model's digest is made; `digest` is the SHA-256 of its bytes."""
    return f"{name} torch.{header.dtype} {header.shape} {digest}"


def _header(path: Path, file: BinaryIO) -> dict[str, dict]:
    """Read the header of a safetensors file, which describes its tensors: 8 bytes of length, then JSON."""
    start = file.read(8)
    if start == LFS_POINTER:
        raise WeightsError(f"{path} is a pointer of Git LFS, not the file itself. Run `git lfs pull` in its folder.")
    length = int.from_bytes(start, "little")
    try:
        if length > path.stat().st_size:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        return {
            name: {
                "dtype": str(t["dtype"]),
                "shape": [*map(int, t["shape"])],
                "data_offsets": [*map(int, t["data_offsets"])],
            }
            for name, t in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{path} is not a safetensors file, or is damaged. Copy it again.") from None


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
