"""An artifact is a folder whose manifest.json says what made it and what is in it.

Writing the manifest is the commit: it comes last, and readers open only what it names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "manifest.json"


class Artifact(NamedTuple):
    folder: Path
    fingerprint: str
    counts: dict[str, Any]
    files: dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}

    def paths(self, prefix: str = "") -> list[Path]:
        """The files whose relative names begin with `prefix`, in order."""
        return [self.folder / name for name in sorted(self.files) if name.startswith(prefix)]


def fingerprint(made_of: dict[str, Any]) -> str:
    """What made an artifact, as 16 hexadecimal digits."""
    canonical = json.dumps(made_of, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def find(folder: Path, made_of: dict[str, Any]) -> Artifact | None:
    """The complete artifact in `folder` that was made of just this, or None."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest["fingerprint"] != fingerprint(made_of):
        return None
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return None
    return Artifact(folder, manifest["fingerprint"], manifest["counts"], manifest["files"])


def begin(folder: Path) -> Path:
    """An empty folder for an artifact about to be made; what an earlier attempt left there goes."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that nobody reads a folder that is being emptied
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(folder: Path, made_of: dict[str, Any], counts: dict[str, Any]) -> Artifact:
    """Write the manifest of everything in `folder`."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {name: describe(folder / name) for name in names}
    write_manifest(folder, fingerprint(made_of), counts, files, made_of)
    return Artifact(folder, fingerprint(made_of), counts, files)


def write_manifest(
    folder: Path, print_: str, counts: dict[str, Any], files: dict[str, dict[str, Any]], made_of: dict[str, Any]
) -> None:
    """The commit itself."""
    content = {"fingerprint": print_, "counts": counts, "files": files, "made_of": made_of}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def describe(path: Path) -> dict[str, Any]:
    """Size and digest of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none or only half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def write_atomically(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, text.encode("utf-8"))


def write_whole(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, never half of either, also after a loss of power."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


class Memo:
    """Digests of files that have not changed (path, size, time of change), kept in the workspace."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = read_json(path) or {}

    def digest(self, path: Path, kind: str = "file", compute: Any = file_digest) -> str:
        """`compute(path)`, remembered for as long as the files below `path` stay as they are."""
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
        state = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        key = f"{kind}:{path}"
        if self.known.get(key, {}).get("state") != state:
            self.known[key] = {"state": state, "digest": compute(path)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self.known, indent=1) + "\n")
        return self.known[key]["digest"]
