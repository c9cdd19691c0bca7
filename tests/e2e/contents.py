"""A file of a run -> its content: what is the same everywhere, what hangs on rounding, what other libraries decide.

Containers do not count: neither compression nor the order of JSON keys, nor how rows are dealt out to parts of a cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

# Entries of JSON that differ from one run to the next: times, memory, what follows from a time.
VOLATILE = re.compile(
    "time|seconds|state|bytes|sha256|peak_bytes|peak_rss_bytes|perf/(pairs_per_second|tokens_per_second|peak_memory_gib|mfu|(step|ingest)_seconds)"
)
# Entries whose numbers were computed in floating point; other numbers are given, or are quotients of integers.
COMPUTED = re.compile(
    "(eval/|rewards/|logps/).*|loss|loss_(first|last)|grad_norm|eval_accuracy|(chosen|rejected)(_moved)?|margin"
)
GENERATED = ("before", "after", "during", "answers")  # texts and token ids that a model wrote, or a name of them
CARD_NUMBER = re.compile(r"-?\d+\.\d{4}\b")  # as a model card writes what was computed
EVENTS = "events.out.tfevents."


class Content(NamedTuple):
    """Three parts of a file, as JSON values; None where it has nothing of the kind."""

    exact: Any
    floats: Any = None
    library: Any = None


def content_of(path: Path) -> Content:
    """The content of any file but a manifest and a part of the cache; one of an unknown kind is its bytes."""
    name = path.name
    if name in ("tokenizer.json", "tokenizer_config.json", "made_with.json"):
        return Content("JSON", library=json.loads(path.read_text(encoding="utf-8")))
    if name in ("zero_to_fp32.py", "zero_to_torch.py"):
        return Content("a program of DeepSpeed", library=digest(path.read_bytes()))
    if name == "ray.log":
        return Content("Ray's own words")
    if name == "curves.png":
        return Content(path.read_bytes()[1:4].decode())
    if name == "report.html":
        return Content("a page")
    if name == "README.md":
        text = path.read_text(encoding="utf-8")
        return Content(CARD_NUMBER.sub("computed", text), CARD_NUMBER.findall(text))
    if name.startswith(EVENTS):
        return events(path)
    readers = {
        ".json": lambda: divided(json.loads(path.read_text(encoding="utf-8"))),
        ".jsonl": lambda: divided(rows_of(path)),
        ".parquet": lambda: table_file(path),
        ".npz": lambda: arrays(path),
        ".safetensors": lambda: weights(path),
        ".pt": lambda: state(path),
    }
    return readers[path.suffix]() if path.suffix in readers else Content(digest(path.read_bytes()))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def rows_of(path: Path) -> list[Any]:
    """The lines of a JSONL file; those of the audit sorted, since its ranks write whenever they are done."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = ("attempt", "epoch", "step", "rank")
    return sorted(rows, key=lambda row: [row[key] for key in order]) if path.name == "audit.jsonl" else rows


def divided(value: Any) -> Content:
    """A JSON value -> the same with words in place of what was computed or is volatile; and what was computed."""
    floats: list[Any] = []
    exact = _masked(value, "", floats)
    return Content(exact, floats or None)


def _masked(value: Any, key: str, floats: list[Any]) -> Any:
    if VOLATILE.fullmatch(key):
        return sorted(value) if isinstance(value, dict) else "volatile"
    if isinstance(value, dict):
        named = key == "during"  # its entries have the names of steps
        return {name: _masked(entry, key if named else name, floats) for name, entry in sorted(value.items())}
    if isinstance(value, list) and key not in GENERATED:
        return [_masked(entry, key, floats) for entry in value]
    if (isinstance(value, float) and COMPUTED.fullmatch(key)) or (isinstance(value, str | list) and key in GENERATED):
        floats.append(value)
        return "computed"
    return value


def table_file(path: Path) -> Content:
    """A Parquet file. Its row groups count: those of an epoch are its steps."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        content = table(file.read())
    return content._replace(exact={**content.exact, "row groups": groups})


def table(rows: pa.Table) -> Content:
    """Schema and values; of a column of floats the exact part has only how many there are in each row."""
    exact: dict[str, Any] = {"schema": [str(field) for field in rows.schema], "metadata": str(rows.schema.metadata)}
    floats: dict[str, Any] = {}
    for field in rows.schema:
        values = [_plain(value) for value in rows[field.name].to_pylist()]
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_floating(inner):
            floats[field.name] = values
            values = [len(value) if isinstance(value, list) else 1 for value in values]
        exact[field.name] = values
    return Content(exact, floats or None)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def arrays(path: Path) -> Content:
    """An npz file of integers."""
    with np.load(path, allow_pickle=False) as found:
        return Content({name: [str(found[name].dtype), found[name].tolist()] for name in sorted(found.files)})


def weights(path: Path) -> Content:
    """A safetensors file: names, types and shapes; and every tensor's bytes."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        exact = {"metadata": file.metadata(), **{name: _shape(tensor) for name, tensor in tensors.items()}}
    return Content(exact, {name: _bytes(tensor) for name, tensor in tensors.items()})


def norms(path: Path) -> dict[str, float]:
    """The Euclidean norm of every tensor of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: float(file.get_tensor(name).double().norm()) for name in sorted(file.keys())}


def _shape(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _bytes(tensor: torch.Tensor) -> str:
    return digest(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def state(path: Path) -> Content:
    """What DeepSpeed saved of a rank: a tree in its own form, with tensors and plain values as leaves."""
    library, floats = {}, {}
    for name, leaf in _leaves(torch.load(path, weights_only=False), ""):
        if isinstance(leaf, torch.Tensor):
            library[name], floats[name] = _shape(leaf), _bytes(leaf)
        else:
            library[name] = leaf if isinstance(leaf, bool | int | float | str | None) else type(leaf).__name__
    return Content("a state of DeepSpeed", floats, library)


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{name}/{key}")
    else:
        yield name, tree


def events(path: Path) -> Content:
    """What TensorBoard shows: steps and tags; and the values of those that are no speeds."""
    found = [(e.step, value) for e in EventFileLoader(str(path)).Load() for value in e.summary.value]
    values = [float(make_ndarray(value.tensor)) for _, value in found if not value.tag.startswith("perf/")]
    return Content([[step, value.tag] for step, value in found], values)
