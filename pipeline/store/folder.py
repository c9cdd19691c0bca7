"""A flat folder of small files, on disk or in an object store. A file appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError, RunError
from pipeline.store.artifacts import write_whole


class Folder:
    """Named by a path or by a URI that fsspec knows (s3://, gs://, ...); credentials come from the environment."""

    def __init__(self, where: str):
        """
        Raises:
            InputError: nothing installed can open such a URI.
        """
        self.where = where.rstrip("/")
        try:
            self.system, self.root = url_to_fs(self.where)
        except (ImportError, ValueError) as error:
            raise InputError(f"cannot open {where!r}: {error}") from None
        self.local = isinstance(self.system, LocalFileSystem)

    def below(self, name: str) -> Folder:
        """A folder in this folder."""
        return Folder(f"{self.where}/{name}")

    def names(self) -> list[str]:
        """Files, sorted; those whose names begin with a dot are still being written."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each of the files, in one listing."""
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
        """Into a folder below this one."""
        with self._reached("written"):
            self.system.makedirs(f"{self.root}/{to}", exist_ok=True)
            self.system.mv(self._path(name), f"{self.root}/{to}/{name}")

    def remove(self, name: str) -> None:
        """A file; that it is gone already is as good."""
        with suppress(FileNotFoundError), self._reached("written"):
            self.system.rm_file(self._path(name))

    def remove_all(self) -> None:
        """The folder with all that is in it."""
        with self._reached("written"):
            self.system.rm(self.root, recursive=True)

    @contextmanager
    def _reached(self, done: str) -> Iterator[None]:
        """Errors of a disk or a store name the folder, and the room that is left.

        Raises:
            RunError: a full disk, no permission, no connection.
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
