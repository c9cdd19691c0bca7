"""Artifacts: folders whose manifest.json records what each was made of and which files it has.

Writing the manifest commits the artifact. It is written last, and readers open only the files that it names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.whole_folder import describe_all, file_digest, read_json, to_json, unlike, write_atomically

MANIFEST = "manifest.json"


class Artifact(NamedTuple):
    folder: Path
    fingerprint: str
    counts: dict[str, Any]
    files: dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}

    def paths(self, prefix: str = "") -> list[Path]:
        """Return the files whose relative names begin with `prefix`, in order."""
        return [self.folder / name for name in sorted(self.files) if name.startswith(prefix)]


def fingerprint(made_of: dict[str, Any]) -> str:
    """Return a digest of the inputs of an artifact, 16 hexadecimal digits."""
    canonical = json.dumps(made_of, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def find(folder: Path, made_of: dict[str, Any]) -> Artifact | None:
    """Return the artifact in `folder` if it is complete and was made of exactly these inputs, else None."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest["fingerprint"] != fingerprint(made_of):
        return None
    if unlike(folder, manifest["files"], digests=False) is not None:
        return None
    return Artifact(folder, manifest["fingerprint"], manifest["counts"], manifest["files"])


def begin(folder: Path) -> Path:
    """Make an empty folder for a new artifact. Files of an earlier attempt are removed."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that no reader opens a folder that is being emptied
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(folder: Path, made_of: dict[str, Any], counts: dict[str, Any]) -> Artifact:
    """Write the manifest of all files in `folder`."""
    files = describe_all(folder, but=MANIFEST)
    write_manifest(folder, fingerprint(made_of), counts, files, made_of)
    return Artifact(folder, fingerprint(made_of), counts, files)


def write_manifest(
    folder: Path, print_: str, counts: dict[str, Any], files: dict[str, dict[str, Any]], made_of: dict[str, Any]
) -> None:
    """Write manifest.json, which commits the folder. `print_` is the fingerprint."""
    content = {"fingerprint": print_, "counts": counts, "files": files, "made_of": made_of}
    write_atomically(folder / MANIFEST, to_json(content, indent=1) + "\n")


class Memo:
    """Digests of files, stored in the workspace. A digest is valid while path, size and modification time are equal."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = read_json(path) or {}

    def digest(self, path: Path, kind: str = "file", compute: Any = file_digest) -> str:
        """Return `compute(path)`, or the stored result if the file, or the files in the folder, have not changed."""
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
        state = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        key = f"{kind}:{path}"
        if self.known.get(key, {}).get("state") != state:
            self.known[key] = {"state": state, "digest": compute(path)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self.known, indent=1) + "\n")
        return self.known[key]["digest"]
