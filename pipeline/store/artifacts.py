"""Artifacts: folders whose manifest.json records what each was made of and which files it has.

An artifact is made in a folder of its own and moved into place when it is whole. Where two processes make the same one,
the first wins and the other uses it. Readers open only the files that the manifest names, and read their digests first.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.whole_folder import READERS, describe, describe_all, read_json, sync, sync_all, write_atomically
from pipeline.errors import InputError, RunError
from pipeline.store.owner import Owner
from pipeline.store.records import Manifest, read_manifest, write_record

MANIFEST = "manifest.json"
MAKER = "maker.json"  # in a folder that is not whole yet: who makes it
BESIDE = re.compile(r"\.[0-9a-f]{16}$")  # the end of the name of such a folder
LEFT_SECONDS = 24 * 60 * 60.0  # after which one whose maker lived on another machine counts as left behind
Files = dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}


class Artifact(NamedTuple):
    folder: Path
    fingerprint: str
    counts: dict[str, Any]
    files: Files

    def paths(self, prefix: str = "") -> list[Path]:
        """Return the files whose relative names begin with `prefix`, in order."""
        return [self.folder / name for name in sorted(self.files) if name.startswith(prefix)]


def fingerprint(made_of: dict[str, Any]) -> str:
    """Return a digest of the inputs of an artifact, 16 hexadecimal digits."""
    canonical = json.dumps(made_of, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def find(folder: Path, made_of: dict[str, Any]) -> Artifact | None:
    """Return the artifact in `folder` if it is complete and was made of exactly these inputs, else None.

    Of its files only the sizes are compared.
    """
    wanted = fingerprint(made_of)
    manifest = read_manifest(folder / MANIFEST) or _moved_in(folder, wanted)
    if manifest is None or manifest.fingerprint != wanted:
        return None
    if any(not is_sized(folder / name, entry) for name, entry in manifest.files.items()):
        return None
    return Artifact(folder, manifest.fingerprint, manifest.counts, manifest.files)


def _moved_in(folder: Path, wanted: str) -> Manifest | None:
    """Put an artifact in its empty place that was whole when the process that was about to do so died."""
    place = folder.resolve()
    if place.exists():
        return None
    for path in place.parent.glob(f"{glob.escape(place.name)}.*/{MANIFEST}"):
        manifest = read_manifest(path) if BESIDE.search(path.parent.name) else None
        if manifest is not None and manifest.fingerprint == wanted:
            with suppress(OSError):  # another process was faster
                path.parent.rename(place)
            return read_manifest(place / MANIFEST)
    return None


def is_sized(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file is there with the size that its entry has."""
    return path.is_file() and path.stat().st_size == entry["bytes"]


def take_up(folder: Path, made_of: dict[str, Any], note: Callable[[str], None]) -> Artifact | None:
    """Return the artifact like `find`, after a look at the digest of every file.

    A damaged one is set aside as `<name>.damaged`, so that it is made anew.

    Args:
        note: called with a sentence that names the damaged file.
    """
    found = find(folder, made_of)
    damaged = damaged_file(found) if found is not None else None
    if found is None:
        return None
    if damaged is None:
        _tidy(folder.resolve())
        return found
    moved = _set_aside(folder)
    if moved is not None and damaged_file(found._replace(folder=moved)) is None:  # another process has mended it
        moved.rename(folder)
        return take_up(folder, made_of, note)
    if moved is not None:
        kept = folder.with_name(f"{folder.name}.damaged")
        _remove(kept)
        moved.rename(kept)
        note(f"{damaged} is damaged (its checksum does not match): {folder.name} is now {kept.name}, and is made again")
    return None


def take_whole(folder: Path, made_of: dict[str, Any], advice: str) -> Artifact | None:
    """Return the artifact like `find`, after a look at the digest of every file.

    Raises:
        InputError: a file is damaged; the message names it and ends with the advice.
    """
    found = find(folder, made_of)
    damaged = damaged_file(found) if found is not None else None
    if damaged is not None:
        raise InputError(f"{damaged} is damaged or was changed (its checksum does not match). {advice}")
    return found


def _whole(folder: Path, made_of: dict[str, Any]) -> Artifact | None:
    found = find(folder, made_of)
    return found if found is not None and damaged_file(found) is None else None


def damaged_file(artifact: Artifact) -> Path | None:
    """Read all files of an artifact; return the first whose digest is not the one stated, None if there is none."""
    with ThreadPoolExecutor(READERS) as pool:
        stated = pool.map(lambda name: describe(artifact.folder / name) == artifact.files[name], artifact.files)
        return next((artifact.folder / n for n, same in zip(artifact.files, stated, strict=True) if not same), None)


def begin(folder: Path) -> Path:
    """Make an empty folder beside `folder`, in which its next content is made, and return it.

    Where `folder` is a link, that is beside its target. What was left unfinished there is removed.
    """
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    _tidy(place)
    own = _beside(place)
    own.mkdir()
    write_atomically(own / MAKER, json.dumps(Owner.me()._asdict()))
    return own


def _tidy(place: Path) -> None:
    """Remove the folders beside an artifact's place in which a process that is gone was making it, or put it away."""
    for path in (path for path in place.parent.glob(f"{glob.escape(place.name)}.*") if BESIDE.search(path.name)):
        maker = Owner.of(read_json(path / MAKER))
        with suppress(FileNotFoundError):
            idle = time.time() - path.stat().st_mtime
            if idle > LEFT_SECONDS if maker is None or not maker.is_here else maker.is_gone:
                shutil.rmtree(path, ignore_errors=True)


def commit(
    own: Path, folder: Path, made_of: dict[str, Any], counts: dict[str, Any], written: Files | None = None
) -> Artifact:
    """Write the manifest of all files in `own` and move it to `folder`; returns the artifact that is there then.

    That is another's, if one of the same inputs is there already. Whatever else is there is removed.

    Args:
        own: as `begin` returned it.
        written: what those who wrote the files say that they wrote.

    Raises:
        RunError: `own` holds other files.
    """
    place, old = folder.resolve(), []
    try:
        files = seal(own, made_of, counts, written)
    except FileNotFoundError:
        there = _whole(place, made_of)
        if there is None:
            raise
        return there._replace(folder=folder)  # a look-up elsewhere found it whole, and put it there
    while True:
        try:
            own.rename(place)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
                raise
            there = _whole(place, made_of)
            if there is not None:  # another's, or this one, which a look-up elsewhere found whole and put there
                shutil.rmtree(own, ignore_errors=True)
                return there._replace(folder=folder)
            if error.errno == errno.ENOENT:
                raise
        moved = _set_aside(place)
        if moved is not None and _whole(moved, made_of) is not None:  # another process has just put it there
            moved.rename(place)
        elif moved is not None:
            old.append(moved)
    sync(place.parent)
    (place / MAKER).unlink(missing_ok=True)
    for path in old:
        _remove(path)
    return Artifact(folder, fingerprint(made_of), counts, files)


def seal(
    folder: Path, made_of: dict[str, Any], counts: dict[str, Any], written: Files | None = None, but: str = ""
) -> Files:
    """Write the manifest of all files in `folder`, where it stands; returns their entries. All is on the disk before.

    Args:
        but: the name of a folder in it that is no part of the artifact.

    Raises:
        RunError: `folder` holds other files than `written` says.
    """
    files = describe_all(folder, MANIFEST, MAKER, but)
    if written is not None and files != written:
        name = min(name for name in files.keys() | written.keys() if files.get(name) != written.get(name))
        raise RunError(
            f"{folder / name} is not what was written there a moment ago: another process works in this folder, or "
            "the disk errs. Run the same command again"
        )
    sync_all(folder)
    write_manifest(folder, fingerprint(made_of), counts, files, made_of)
    return files


def _beside(place: Path) -> Path:
    """A name beside an artifact's that nobody else takes."""
    return place.with_name(f"{place.name}.{secrets.token_hex(8)}")


def _set_aside(place: Path) -> Path | None:
    """Move away what is in the place of an artifact; None if nothing is."""
    old = _beside(place)
    try:
        place.rename(old)
    except FileNotFoundError:
        return None
    return old


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one without what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_manifest(folder: Path, print_: str, counts: dict[str, Any], files: Files, made_of: dict[str, Any]) -> None:
    """Write manifest.json, which commits the folder. `print_` is the fingerprint."""
    content = {"fingerprint": print_, "counts": counts, "files": files, "made_of": made_of}
    write_record(folder / MANIFEST, content)
