"""A path or URI -> the data files that it names; a data file -> its bytes."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline.errors import InputError, first_line

NAMES = re.compile(r"\.(jsonl|ndjson|json|csv)(\.gz|\.zst)?$|\.(parquet|arrow)$")
KINDS = ".jsonl, .ndjson, .json, .csv (all also .gz and .zst), .parquet and .arrow files"
DAMAGED = (EOFError, OSError, zlib.error)  # raised on reading a compressed file that is truncated or changed
# Files that runs write, and keys by which they are told from other files of these names.
OURS = {
    "config.json": {"run", "data", "policy", "train"},
    "manifest.json": {"fingerprint", "counts", "files", "made_of"},
    "identity.json": {"weights", "config", "dtype"},
}
SHOWN = 3  # names beside a path that does not exist
MOST_RECORD_BYTES = 64 * 2**20  # a larger file of such a name is somebody else's
# Files that the library `datasets` writes next to the rows of a saved data set.
NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def is_uri(path: str) -> bool:
    return "://" in path


def list_files(path: str, key: str, own: Sequence[Path] = ()) -> list[str]:
    """List the files of a path: one file, all files in and below a folder, or all files that match a pattern.

    In and below a folder, and among matches, what runs wrote is passed over.

    Args:
        path: a local path, or a URI that fsspec knows (s3://, gs://, hf://, ...).
        key: the configuration key that holds the path, for messages.
        own: folders that belong to the run.

    Raises:
        InputError: there are no files, or one of them has an unsupported format.
    """
    if is_uri(path):
        return _list_store(path, key)
    place = Path(path)
    if place.is_dir():
        if (place / "dataset_dict.json").exists():
            splits = ", ".join(sorted(part.name for part in place.iterdir() if part.is_dir()))
            raise InputError(f"{key} = {path!r}: holds several splits ({splits}); name one of these folders.")
        found = [file for file in sorted(place.rglob("*")) if file.is_file() and _looks_read(file, place)]
        theirs = _of_others(found, place, own)
        if not theirs:
            besides = ", besides what runs wrote" if found else ""
            raise InputError(f"{key} = {path!r}: the folder holds no {KINDS.replace(' and ', ' or ')}{besides}.")
        return theirs
    if not place.exists() and re.search(r"[*?\[]", path):
        root = Path(place.anchor)
        matching = sorted(file for file in root.glob(str(place.relative_to(root))) if file.is_file())
        found = _of_others(matching, _fixed(place), own)
        if not found:
            besides = ", besides what runs wrote" if matching else ""
            raise InputError(f"{key} = {path!r}: no file matches this pattern{besides}.")
        return [_checked(file, key, file) for file in found]
    if not place.is_file():
        raise InputError(f"{key} = {path!r}: does not exist.{_what_there_is(place)}")
    return [_checked(path, key, path)]


def _what_there_is(place: Path) -> str:
    """The names beside a path that does not exist, those like it first; the folder, where that is missing, too."""
    if not place.parent.is_dir():
        return f" Nor does the folder {place.parent}."
    there = sorted(path.name for path in place.parent.iterdir() if not path.name.startswith("."))
    alike = difflib.get_close_matches(place.name, there, SHOWN)
    shown = alike or there[:SHOWN]
    more = " and others" if len(shown) < len(there) else ""
    return f" In {place.parent} there are: {', '.join(shown)}{more}." if there else f" {place.parent} is empty."


def _fixed(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    return next(folder for folder in pattern.parents if not re.search(r"[*?\[]", str(folder)))


def _of_others(files: list[Path], below: Path, own: Sequence[Path]) -> list[str]:
    """Leave out the files in folders that a run wrote, or that belong to this one, if they are below a folder."""
    apart = [folder for folder in own if below in folder.parents]
    ours: dict[Path, bool] = {}

    def written(folder: Path) -> bool:
        if folder not in ours:
            above = folder != below and below in folder.parents and written(folder.parent)
            ours[folder] = above or folder in apart or _by_a_run(folder)
        return ours[folder]

    return [str(file) for file in files if not written(file.parent)]


def _by_a_run(folder: Path) -> bool:
    """Tell whether a run, an artifact or a cache of ours is in a folder."""
    return any(_has_keys(folder / name, keys) for name, keys in OURS.items())


def _has_keys(path: Path, keys: set[str]) -> bool:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= MOST_RECORD_BYTES else None
    except (OSError, ValueError, RecursionError):  # not there, or a file of somebody else
        return False
    return isinstance(content, dict) and content.keys() >= keys


def _list_store(uri: str, key: str) -> list[str]:
    """List the files of a URI, like `list_files`."""
    scheme = uri.partition("://")[0]
    try:
        system, root = url_to_fs(uri)
        system.invalidate_cache()  # an earlier listing of this process may be out of date
        if re.search(r"[*?\[]", root) and not system.exists(root):
            found = [name for name in sorted(system.glob(root)) if NAMES.search(name)]
        elif system.isdir(root):
            found = [name for name in sorted(system.find(root)) if _looks_read(Path(name), Path(root))]
        else:
            found = [_checked(root, key, uri)] if system.exists(root) else []
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{key} = {uri!r}: {error} (ray-align[s3] and ray-align[gcs] bring what is needed)") from None
    except Exception as error:  # every store's client has errors of its own
        reason = first_line(error)
        said = f"{key} = {uri!r} cannot be listed: {reason}"
        if not isinstance(error, ValueError):  # fsspec raises ValueError for an unknown scheme
            said += ". Credentials come from the environment, as for the store's tools"
        raise InputError(said) from None
    if not found:
        raise InputError(f"{key} = {uri!r}: there is no such file, or none in a supported format ({KINDS}).")
    return [f"{scheme}://{name}" for name in found]


def _checked(file: str, key: str, path: str) -> str:
    if not NAMES.search(file):
        fix = " Write tab-separated values as CSV." if re.search(r"\.tsv(\.|$)", file) else ""
        raise InputError(f"{key} = {path!r}: only {KINDS} are supported.{fix}")
    return file


def _looks_read(file: Path, below: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(below).parts)
    return not hidden and NAMES.search(file.name) is not None and file.name not in NOT_ROWS


def open_raw(path: str) -> BinaryIO:
    """Open a file and read its bytes as they are stored."""
    if not is_uri(path):
        return Path(path).open("rb")
    system, root = url_to_fs(path)
    return cast(BinaryIO, io.BufferedReader(_Raw(system.open(root, "rb")), 1 << 20))


def open_bytes(path: str) -> BinaryIO:
    """Open a file and read its bytes, decompressed if its name ends with .gz or .zst. The result has `peek`."""
    if path.endswith(".gz"):
        return cast(
            BinaryIO, io.BufferedReader(_Unpacked(gzip.open(open_raw(path) if is_uri(path) else path)), 1 << 16)
        )
    if path.endswith(".zst"):
        packed = pa.PythonFile(open_raw(path)) if is_uri(path) else pa.OSFile(path)
        return cast(BinaryIO, io.BufferedReader(_Unpacked(pa.CompressedInputStream(packed, "zstd"))))
    return open_raw(path)


class _Raw(io.RawIOBase):
    """A file of fsspec as an `io.RawIOBase`, which BufferedReader needs. fsspec's own class is not one."""

    def __init__(self, file: Any):
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """A decompressed stream that, after a first error, raises the same error on every further read.

    Otherwise a read after an error would give wrong data: gzip takes a truncated file for an empty one, and Arrow
    returns memory that it never wrote to.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            raise self.error
        try:
            data = self.stream.read1(len(buffer))  # read1, not read: the bytes before an error are good
        except Exception as error:
            self.error = error
            raise
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def version_in_store(uri: str) -> str:
    """Return a digest that changes when an object changes, without reading it: of its ETag or other metadata."""
    system, root = url_to_fs(uri)
    return hashlib.sha256(f"{uri} {system.size(root)} {system.checksum(root)}".encode()).hexdigest()
