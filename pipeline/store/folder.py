"""A flat folder of small files, on disk or in an object store. A file appears whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError
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
            found = self.system.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return dict(
            sorted((Path(entry["name"]).name, int(entry["size"] or 0)) for entry in found if entry["type"] == kind)
        )

    def read(self, name: str) -> bytes:
        return self.system.cat_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        if self.local:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            write_whole(Path(self._path(name)), content)
        else:
            self.system.pipe_file(self._path(name), content)  # an object appears when its upload is complete

    def move(self, name: str, to: str) -> None:
        """Into a folder below this one."""
        self.system.makedirs(f"{self.root}/{to}", exist_ok=True)
        self.system.mv(self._path(name), f"{self.root}/{to}/{name}")

    def remove(self, name: str) -> None:
        """A file; that it is gone already is as good."""
        with suppress(FileNotFoundError):
            self.system.rm_file(self._path(name))

    def remove_all(self) -> None:
        """The folder with all that is in it."""
        self.system.rm(self.root, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"
