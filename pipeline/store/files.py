"""Which data files a path names, and their bytes."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.errors import InputError

NAMES = re.compile(r"\.(jsonl|ndjson|json|csv)(\.gz|\.zst)?$|\.(parquet|arrow)$")
KINDS = ".jsonl, .ndjson, .json, .csv (all also .gz and .zst), .parquet and .arrow files"


def list_files(path: str, key: str) -> list[Path]:
    """The files that a config key names: one file, those of a folder and below it, or those that a pattern matches.

    Raises:
        InputError: there are none, or one is not of a kind that is read.
    """
    place = Path(path)
    if place.is_dir():
        found = [file for file in sorted(place.rglob("*")) if file.is_file() and _looks_read(file, place)]
        if not found:
            raise InputError(f"{key} = {path!r}: the folder holds no {KINDS.replace(' and ', ' or ')}.")
        return found
    if not place.exists() and re.search(r"[*?\[]", path):
        root = Path(place.anchor)
        found = sorted(file for file in root.glob(str(place.relative_to(root))) if file.is_file())
        if not found:
            raise InputError(f"{key} = {path!r}: no file matches this pattern.")
        return [_checked(file, key, str(file)) for file in found]
    if not place.is_file():
        raise InputError(f"{key} = {path!r}: does not exist.")
    return [_checked(place, key, path)]


def _checked(file: Path, key: str, path: str) -> Path:
    if not NAMES.search(file.name):
        raise InputError(f"{key} = {path!r}: only {KINDS} are read.")
    return file


def _looks_read(file: Path, below: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(below).parts)
    return not hidden and NAMES.search(file.name) is not None


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, unpacked where its name says that they are packed; has `peek`."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))  # type: ignore[arg-type]
    return path.open("rb")
