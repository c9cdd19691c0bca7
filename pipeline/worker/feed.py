"""The windows that a rank reads its steps from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline.store import run_files

JOINED = "joined"  # the folder of windows that get their log-probs while training runs
FAILED = "failed"  # a file beside windows that will not appear any more


class Feed(NamedTuple):
    """The files that a rank reads its steps from: windows of each epoch, and of the held-out pairs."""

    epochs: list[list[str]]  # paths of Parquet files; their lengths stand beside them
    steps_per_window: int
    held_out: list[str]
    batch_pairs: int
    appearing: bool  # windows are still being written, and are waited for


def make_feed(folder: Path, epochs: int, steps_per_window: int, batch_pairs: int, appearing: bool = False) -> Feed:
    """The feed of the windows below an epochs folder, or of those that will appear in `joined` there."""
    root = folder / JOINED if appearing else folder

    def below(name: str) -> list[str]:
        return [str(root / name / path.name) for path in sorted((folder / name).glob(run_files.WINDOWS))]

    return Feed([below(str(e)) for e in range(epochs)], steps_per_window, below("eval"), batch_pairs, appearing)
