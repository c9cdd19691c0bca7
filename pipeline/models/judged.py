"""The verdict on a model folder, before anything is prepared: it is trained as it is, or refused with the reason."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from pipeline.place import Place
from pipeline.process import Process

FORMAT_VERSION = 2


def refuse_untrainable(place: Place, folder: Path) -> None:
    """Judge a folder, in a process of its own; the verdict on one that passes is kept while its files stay as they are.

    Raises:
        ModelError, WeightsError: the folder cannot be trained.
    """
    kind = f"judged {FORMAT_VERSION}, transformers {version('transformers')}"
    place.memo.digest(folder, kind, lambda path: Process(_judge, path).result())


def _judge(folder: Path) -> str:
    from dpo.lm.judge import judge  # with torch and transformers, which the driver does without
    from dpo.lm.small import try_small

    judge(folder)
    try_small(folder)
    return "fits"
