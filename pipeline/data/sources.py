"""Where the rows come from: data.train and data.eval -> files, each with what its source says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Data, Source
from pipeline.data.files import NAMES, is_uri, list_files, version_in_store
from pipeline.errors import InputError, first_line
from pipeline.store.artifacts import Memo, begin, commit, find, fingerprint
from pipeline.store.tokens import MOST_FILES

HUB = re.compile(r"^(?:hf://datasets/)?([\w.-]+/[\w.-]+)/?$")


class DataFile(NamedTuple):
    """`split`: where its rows belong; None: by a hash of the prompt. `columns`: our names -> those of its rows."""

    path: str
    split: str | None
    weight: float
    columns: dict[str, str]


def data_files(data: Data, workspace: Path) -> list[DataFile]:
    """The files to read, in the order in which their rows are numbered.

    Args:
        workspace: where data sets of the hub are kept, so that every node sees them.

    Raises:
        InputError: one is missing or of no known kind, or the held-out file is a training file.
    """
    sources = [("data.train", given) for given in (data.train if isinstance(data.train, list) else [data.train])]
    if isinstance(data.eval, str | Source):
        sources.append(("data.eval", data.eval))
    found: list[DataFile] = []
    for key, given in sources:
        source = given if isinstance(given, Source) else Source(path=given)
        split = "eval" if key == "data.eval" else None if isinstance(data.eval, float) else "train"
        columns = data.columns if source.columns is None else source.columns
        found += [DataFile(path, split, source.weight, columns) for path in _paths(source, key, workspace)]
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


def _paths(source: Source, key: str, workspace: Path) -> list[str]:
    hub = HUB.match(source.path)
    if hub and not Path(source.path).exists() and not NAMES.search(source.path):
        return _from_hub(hub[1], source, key, workspace)
    return list_files(source.path, key)


def _from_hub(name: str, source: Source, key: str, workspace: Path) -> list[str]:
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
        raise InputError(
            f"{key} = {source.path!r} is no file here, and the hub did not give split {source.split!r} of it: "
            f"{first_line(error)}"
        ) from None
    made_of = {"stage": "source", "hub": name, "name": source.name, "split": source.split, "rows": rows._fingerprint}
    folder = workspace / "sources" / fingerprint(made_of)
    artifact = find(folder, made_of)
    if artifact is None:
        begin(folder)
        rows.save_to_disk(str(folder / "rows"))
        artifact = commit(folder, made_of, {"rows": len(rows)})
    return [str(path) for path in artifact.paths("rows/") if path.suffix == ".arrow"]


def file_weights(files: list[DataFile]) -> tuple[float, ...]:
    """The weight of each file, by number; empty where every row counts once."""
    weights = tuple(file.weight for file in files)
    return () if all(weight == 1.0 for weight in weights) else weights


def file_digest_of(memo: Memo, file: DataFile) -> str:
    """A digest that changes when the file's content does."""
    return version_in_store(file.path) if is_uri(file.path) else memo.digest(Path(file.path))
