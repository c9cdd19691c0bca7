"""A flat folder of small files, on disk or in an object store. Files are written atomically."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from dpo.lm.whole_folder import write_whole
from pipeline.errors import InputError, RunError


class Folder:
    """A folder at a path, or at a URI that fsspec knows (s3://, gs://, ...). Credentials come from the environment."""

    def __init__(self, where: str):
        """Open the folder; it need not exist.

        Raises:
            InputError: no installed library can open such a URI.
        """
        self.where = where.rstrip("/")
        try:
            self.system, self.root = url_to_fs(self.where)
        except (ImportError, ValueError) as error:
            raise InputError(f"cannot open {where!r}: {error}") from None
        self.local = isinstance(self.system, LocalFileSystem)

    def below(self, name: str) -> Folder:
        """Return a folder in this folder."""
        return Folder(f"{self.where}/{name}")

    def names(self) -> list[str]:
        """List the files, sorted, without those whose names begin with a dot: they are still being written."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes, from one listing."""
        return {name: size for name, size in self._list("file").items() if not name.startswith(".")}

    def folders(self) -> list[str]:
        return list(self._list("directory"))

    def _list(self, kind: str) -> dict[str, int]:
        self.system.invalidate_cache()  # others write here too
        try:
            with self._reached("listed"):
                found = self.system.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return dict(
            sorted((Path(entry["name"]).name, int(entry["size"] or 0)) for entry in found if entry["type"] == kind)
        )

    def read(self, name: str) -> bytes:
        with self._reached("read"):
            return self.system.cat_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        with self._reached("written"):
            if self.local:
                Path(self.root).mkdir(parents=True, exist_ok=True)
                write_whole(Path(self._path(name)), content)
            else:
                self.system.pipe_file(self._path(name), content)  # an object appears when its upload is complete

    def move(self, name: str, to: str) -> None:
        """Move a file into a folder below this one."""
        with self._reached("written"):
            self.system.makedirs(f"{self.root}/{to}", exist_ok=True)
            self.system.mv(self._path(name), f"{self.root}/{to}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with suppress(FileNotFoundError), self._reached("written"):
            self.system.rm_file(self._path(name))

    def remove_all(self) -> None:
        """Remove the folder and everything in it."""
        with self._reached("written"):
            self.system.rm(self.root, recursive=True)

    @contextmanager
    def _reached(self, done: str) -> Iterator[None]:
        """Turn errors of a disk or store into a message with the folder's name and its free space.

        Raises:
            RunError: the disk is full, access is denied, or the store cannot be reached.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # every store's client has errors of its own
            if self.local and (not isinstance(error, OSError) or error.errno is None):
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise RunError(f"{self.where} cannot be {done}: {reason}{self._room()}") from None

    def _room(self) -> str:
        try:
            return f" ({shutil.disk_usage(self.root).free:,} bytes are free there)" if self.local else ""
        except OSError:
            return ""

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"
