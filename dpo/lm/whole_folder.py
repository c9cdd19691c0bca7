"""Folders that count only when they are whole: a manifest, written last, has the size and digest of each file.

Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

READERS = 4  # files read at the same time; digesting releases the interpreter's lock


def describe_all(folder: Path, *but: str) -> dict[str, dict[str, Any]]:
    """Describe every file below a folder under its relative name, except what has or lies below one of these names."""
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in paths if Path(name).parts[0] not in but]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(lambda name: describe(folder / name), names), strict=True))


def describe(path: Path) -> dict[str, Any]:
    """Return size and digest of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unlike(folder: Path, files: dict[str, dict[str, Any]], digests: bool) -> Path | None:
    """Return the first file that is missing or is not as described, None if all are.

    Args:
        digests: read each file for its digest; otherwise only sizes are compared.
    """
    for name, entry in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return path
        if digests and file_digest(path) != entry["sha256"]:
            return path
    return None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing, or holds anything but JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a record as JSON that every language reads: numbers that are not finite, which JSON lacks, are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_atomically(path: Path, text: str) -> None:
    """Write text with `write_whole`."""
    write_whole(path, text.encode("utf-8"))


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old content or the new one, even after a loss of power."""
    beside = temporary(path)
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def temporary(path: Path) -> Path:
    """Return a name beside `path` that nobody else takes, on this host or on another, in a container or outside."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):
            raise  # some file systems of networks cannot sync a folder
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Sync every file and every folder below a folder, and the folder itself."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            sync(path)
    sync(folder)
