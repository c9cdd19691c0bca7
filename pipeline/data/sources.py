"""data.train and data.eval -> data files, each with the settings of its source."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from dpo.text.verdict import Verdict
from pipeline.config import Data, Source
from pipeline.data.files import NAMES, is_uri, list_files, version_in_store
from pipeline.data.splits import of_split
from pipeline.errors import InputError, first_line
from pipeline.store.artifacts import begin, commit, fingerprint, take_up
from pipeline.store.memo import Memo
from pipeline.store.tokens import MOST_FILES

SMALL_BYTES = 8 * 2**20  # one process reads less data than this faster than another starts
HUB = re.compile(r"^(?:hf://datasets/)?([\w.-]+/[\w.-]+)/?$")


class DataFile(NamedTuple):
    """A file of rows. `split` is None where a hash of the prompt decides. `columns` maps our names to the file's.

    `verdict` says what a winner means that is no word.
    """

    path: str
    split: str | None
    weight: float
    columns: dict[str, str]
    verdict: Verdict = None


def data_files(data: Data, workspace: Path, run_dir: Path | None = None) -> list[DataFile]:
    """List the files to read, in the order in which their rows are numbered.

    Args:
        workspace: folder for data sets of the Hub, which every node sees.
        run_dir: the run's folder, which is never data, no more than the workspace.

    Raises:
        InputError: a file is missing or has an unsupported format, or a held-out file is also a training file.
    """
    found: list[DataFile] = []
    for key, given in _sources(data):
        source = given if isinstance(given, Source) else Source(path=given)
        split = "eval" if key == "data.eval" else None if isinstance(data.eval, float) else "train"
        columns = data.columns if source.columns is None else source.columns
        verdict = data.verdict if source.verdict is None else source.verdict
        paths = _paths(source, key, workspace, run_dir)
        found += [DataFile(path, split, source.weight, columns, verdict) for path in paths]
    trained = {_identity(file.path) for file in found if file.split == "train"}
    for file in (file for file in found if file.split == "eval"):
        if _identity(file.path) in trained:
            raise InputError(
                f"data.eval = {file.path!r} is also a training file, so it would not be held out. "
                "Name another file, or a fraction, for example data.eval=0.05."
            )
    if len(found) > MOST_FILES:
        raise InputError(f"data.train and data.eval name {len(found):,} files; at most {MOST_FILES:,} are supported.")
    return found


def _sources(data: Data) -> list[tuple[str, str | Source]]:
    sources = [("data.train", given) for given in (data.train if isinstance(data.train, list) else [data.train])]
    return [*sources, ("data.eval", data.eval)] if isinstance(data.eval, str | Source) else sources


def few_bytes(files: list[DataFile]) -> bool:
    """Tell whether this process may as well read all the data itself.

    A format other than .jsonl may be packed, so its bytes count four times; what is not on this machine is never small.
    """
    if any(is_uri(file.path) for file in files):
        return False
    sizes = [Path(file.path).stat().st_size * (1 if Path(file.path).suffix == ".jsonl" else 4) for file in files]
    return sum(sizes) <= SMALL_BYTES


def _identity(path: str) -> str | tuple[int, int]:
    """Return a value that is equal for two names of the same file."""
    if is_uri(path):
        return path
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _paths(source: Source, key: str, workspace: Path, run_dir: Path | None) -> list[str]:
    hub = HUB.match(source.path)
    if hub and not Path(source.path).exists() and not NAMES.search(source.path):
        return _from_hub(hub[1], source, key, workspace)
    kept_out = [folder for folder in (workspace, run_dir) if folder is not None]
    return of_split(list_files(source.path, key, kept_out), source.split, key, source.path).files


def left_out(data: Data, workspace: Path, run_dir: Path) -> list[str]:
    """Say which files of local folders belong to other splits and are not read."""
    found = []
    for key, given in _sources(data):
        source = given if isinstance(given, Source) else Source(path=given)
        if Path(source.path).is_dir():
            files = list_files(source.path, key, [workspace, run_dir])
            others = of_split(files, source.split, key, source.path).left_out
            names = ", ".join(str(Path(file).relative_to(source.path)) for file in others[:4])
            more = f" and {len(others) - 4:,} more" if len(others) > 4 else ""
            found += [f"{key} = {source.path!r}: not read, as files of other splits: {names}{more}"] if others else []
    return found


def _from_hub(name: str, source: Source, key: str, workspace: Path) -> list[str]:
    """Load a data set of the Hub with the library `datasets`, save it in the workspace and list its files.

    Raises:
        InputError: the library is not installed, or cannot load the data set.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{key} = {source.path!r} is not a file here. To read it from the Hub, install ray-align[hub]."
        ) from None
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, source.name, split=source.split)
    except Exception as error:  # the library, its builders and the Hub's client have errors of their own
        raise InputError(
            f"{key} = {source.path!r} is not a file here, and its split {source.split!r} could not be loaded from the "
            f"Hub: {first_line(error)}"
        ) from None
    made_of = {"stage": "source", "hub": name, "name": source.name, "split": source.split, "rows": rows._fingerprint}
    folder = workspace / "sources" / fingerprint(made_of)
    artifact = take_up(folder, made_of, lambda said: print(f"ray-align: {said}", file=sys.stderr))
    if artifact is None:
        own = begin(folder)
        rows.save_to_disk(str(own / "rows"))
        artifact = commit(own, folder, made_of, {"rows": len(rows)})
    return [str(path) for path in artifact.paths("rows/") if path.suffix == ".arrow"]


def file_weights(files: list[DataFile]) -> tuple[float, ...]:
    """Return the weight of each file, by number; empty if every row counts once."""
    weights = tuple(file.weight for file in files)
    return () if all(weight == 1.0 for weight in weights) else weights


def file_digest_of(memo: Memo, file: DataFile) -> str:
    """Return a digest that changes when the content of the file changes."""
    return version_in_store(file.path) if is_uri(file.path) else memo.digest(Path(file.path))
