"""Where the rows come from: data.train and data.eval -> files, each with what its source says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config import Source
from pipeline.errors import InputError
from pipeline.store.artifacts import begin, commit, find, fingerprint
from pipeline.store.files import NAMES, is_uri, list_files, version_in_store
from pipeline.store.tokens import MOST_FILES

if TYPE_CHECKING:
    from pipeline.place import Place

HUB = re.compile(r"^(?:hf://datasets/)?([\w.-]+/[\w.-]+)/?$")


class DataFile(NamedTuple):
    """`split`: where its rows belong; None: by a hash of the prompt. `columns`: our names -> those of its rows."""

    path: str
    split: str | None
    weight: float
    columns: dict[str, str]


def data_files(place: Place) -> list[DataFile]:
    """The files to read, in the order in which their rows are numbered.

    Raises:
        InputError: one is missing or of no known kind, or the held-out file is a training file.
    """
    if place.files is None:
        place.files = _find(place)
    return place.files


def _find(place: Place) -> list[DataFile]:
    data = place.config.data
    sources = [("data.train", given) for given in (data.train if isinstance(data.train, list) else [data.train])]
    if isinstance(data.eval, str | Source):
        sources.append(("data.eval", data.eval))
    found: list[DataFile] = []
    for key, given in sources:
        source = given if isinstance(given, Source) else Source(path=given)
        split = "eval" if key == "data.eval" else None if isinstance(data.eval, float) else "train"
        columns = data.columns if source.columns is None else source.columns
        found += [DataFile(path, split, source.weight, columns) for path in _paths(place, source, key)]
    trained = {_identity(file.path) for file in found if file.split == "train"}
    for file in (file for file in found if file.split == "eval"):
        if _identity(file.path) in trained:
            raise InputError(
                f"data.eval = {file.path!r} is also a training file, so nothing would be held out. "
                "Name another file, or a fraction, for example data.eval=0.05."
            )
    if len(found) > MOST_FILES:
        raise InputError(f"data.train and data.eval name {len(found):,} files, and at most {MOST_FILES:,} are read.")
    return found


def _identity(path: str) -> str | tuple[int, int]:
    """The same for two names of one file."""
    if is_uri(path):
        return path
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _paths(place: Place, source: Source, key: str) -> list[str]:
    hub = HUB.match(source.path)
    if hub and not Path(source.path).exists() and not NAMES.search(source.path):
        return _from_hub(place, hub[1], source, key)
    return list_files(source.path, key)


def _from_hub(place: Place, name: str, source: Source, key: str) -> list[str]:
    """A data set of the hub, read by the library `datasets` and kept in the workspace, where every node sees it.

    Raises:
        InputError: the library is not installed, or does not get it.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{key} = {source.path!r} is no file here. To read it from the hub, install ray-align[hub]."
        ) from None
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, source.name, split=source.split)
    except Exception as error:  # the library, its builders and the hub's client have errors of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{key} = {source.path!r} is no file here, and the hub did not give split {source.split!r} of it: {reason}"
        ) from None
    made_of = {"stage": "source", "hub": name, "name": source.name, "split": source.split, "rows": rows._fingerprint}
    folder = place.workspace / "sources" / fingerprint(made_of)
    artifact = find(folder, made_of)
    if artifact is None:
        begin(folder)
        rows.save_to_disk(str(folder / "rows"))
        artifact = commit(folder, made_of, {"rows": len(rows)})
    return [str(path) for path in artifact.paths("rows/") if path.suffix == ".arrow"]


def file_weights(place: Place) -> tuple[float, ...]:
    """One a file, by number; empty where every row counts once."""
    weights = tuple(file.weight for file in data_files(place))
    return () if all(weight == 1.0 for weight in weights) else weights


def file_digest_of(place: Place, file: DataFile) -> str:
    """What changes when the file's content does."""
    return version_in_store(file.path) if is_uri(file.path) else place.memo.digest(Path(file.path))
