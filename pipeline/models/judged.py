"""The verdicts on model folders: a start, before anything is prepared, and weights that were trained from one."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from dpo.lm.weight_files import tensor_headers, unlike, weights_digest
from pipeline.errors import RunError
from pipeline.place import Place
from pipeline.process import Process

FORMAT_VERSION = 2
FITS, HELD = "fits", "fits; its tensors have the names of the memory"  # verdicts
NAMED = 3  # differences that a message names


def refuse_untrainable(place: Place, folder: Path) -> None:
    """Judge a folder, in a process of its own; the verdict on one that passes is kept while its files stay as they are.

    Raises:
        ModelError, WeightsError: the folder cannot be trained.
    """
    place.memo.digest(folder, _kind(), lambda path: Process(_judge, path).result())


def _kind() -> str:
    return f"judged {FORMAT_VERSION}, transformers {version('transformers')}"


def _judge(folder: Path) -> str:
    from dpo.lm.held import is_held  # with torch and transformers, which the driver does without
    from dpo.lm.judge import judge
    from dpo.lm.model_config import is_x_transformers, read_config
    from dpo.lm.small import try_small

    judge(folder)
    try_small(folder)
    return FITS if is_x_transformers(read_config(folder)) or not is_held(folder) else HELD


def digest_of_start(place: Place, folder: Path) -> str:
    """The digest of a model folder, which is that of the library's files where it was judged to have other names."""
    held = place.memo.recall(folder, _kind(), young=True) == HELD  # this run's own verdict
    return place.memo.digest(folder, "weights", _digest_held if held else weights_digest)


def _digest_held(folder: Path) -> str:
    return Process(_digest_on_disk, folder).result()


def _digest_on_disk(folder: Path) -> str:
    from dpo.lm.held import digest_on_disk  # with torch and transformers, as above

    return digest_on_disk(folder)


def refuse_unlike(written: Path, start: Path, dtype: str) -> None:
    """Refuse trained weights that have other names, shapes or types than their start: other programs look for those.

    Raises:
        RunError: names the first differences.
    """
    if not unlike(tensor_headers(written), tensor_headers(start), dtype):
        return
    found = Process(_unlike, written, start, dtype).result()
    if found:
        raise RunError(
            f"The trained weights in {written} are not like those of {start}: {named(found)}. Training is done, and "
            "its last checkpoint is kept. Run again with another version of transformers, or report this with the "
            "model's name."
        )


def named(found: list[str]) -> str:
    """The first differences of several, and how many there are."""
    first, more = "; ".join(found[:NAMED]), len(found) - NAMED
    return f"{first}; and {more} more" if more > 0 else first


def _unlike(written: Path, start: Path, dtype: str) -> list[str]:
    from dpo.lm.judge import unlike_start  # with torch and transformers, as above

    return unlike_start(written, start, dtype)
