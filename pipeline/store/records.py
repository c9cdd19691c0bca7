"""Records: the manifests of artifacts and checkpoints, and other small JSON files that decide something.

A record carries a digest of its own content. A reader knows two answers, whole or not there: a flipped bit, a cut or
a value of another kind is not there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.whole_folder import read_json, to_json, write_atomically

DIGEST = "sha256"
HEX_DIGITS = 64  # of a SHA-256


class Manifest(NamedTuple):
    """The record that commits a folder."""

    fingerprint: str
    counts: dict[str, Any]
    files: dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}
    made_of: dict[str, Any]


def own_digest(content: dict[str, Any]) -> str:
    """Return a SHA-256 over the canonical JSON of a record without its digest."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record atomically, with a digest of itself."""
    plain = json.loads(to_json(content))  # as a reader will see it
    write_atomically(path, to_json({**plain, DIGEST: own_digest(plain)}, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a record; None if it is not there, is damaged, or has no digest."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get(DIGEST) != own_digest(content):
        return None
    return {key: value for key, value in content.items() if key != DIGEST}


def read_manifest(path: Path) -> Manifest | None:
    """Return a manifest; None if it is not there or is damaged. One of an older version has no digest of itself."""
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() - {DIGEST} != set(Manifest._fields):
        return None
    if DIGEST in content and content[DIGEST] != own_digest(content):
        return None
    found = Manifest(*(content[name] for name in Manifest._fields))
    return found if _has_the_shape(found) else None


def _has_the_shape(manifest: Manifest) -> bool:
    kinds = (str, dict, dict, dict)
    if any(type(value) is not kind for value, kind in zip(manifest, kinds, strict=True)):
        return False
    return all(_is_entry(name, entry) for name, entry in manifest.files.items())


def _is_entry(name: str, entry: Any) -> bool:
    """Whether a file's entry has a size and a digest, and its name leads to no other folder."""
    if not name or not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
        return False
    parts = Path(name).parts
    inside = not Path(name).is_absolute() and ".." not in parts and "\0" not in name and max(map(len, parts)) < 256
    whole = type(entry["bytes"]) is int and isinstance(entry["sha256"], str) and len(entry["sha256"]) == HEX_DIGITS
    return inside and whole
