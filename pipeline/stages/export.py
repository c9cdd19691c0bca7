"""Trained weights -> a folder that loads elsewhere: weights, config, tokenizer, chat template, model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.data.tokenizer import save_tokenizer, tokenizer_source
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.process import Process
from pipeline.record import Made
from pipeline.report.card import model_card
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.preflight import Inputs
from pipeline.stages.score import Scores
from pipeline.store import run_files
from pipeline.store.artifacts import MAKER, MANIFEST, begin, commit, take_whole

FORMAT_VERSION = 1
ADVICE = "Move that folder elsewhere, and run the same command again: the export is then written anew from the weights."


def export(
    place: Place,
    inputs: Inputs,
    weights: Weights,
    scores: Scores | None,
    evaluation: Evaluation,
    counts: dict[str, Any],
    meanwhile: Callable[[], None],
) -> Made[Path]:
    """Write `runs/<name>/export`.

    Args:
        counts: of the run so far, for the model card.
        meanwhile: called while the tokenizer is written, which takes a process of its own a second.
    """
    made_of = {
        "stage": "export",
        "format": FORMAT_VERSION,
        "weights": weights.digest,
        "metrics": evaluation.metrics,
        "chat_template": inputs.tokenizer.chat_template,
    }
    folder = place.run_dir / run_files.EXPORT
    if take_whole(folder, made_of, ADVICE) is None:
        own = begin(folder)
        for path in weights.folder.iterdir():
            if path.name not in (MANIFEST, MAKER):
                _link(path, own / path.name)
        saving = Process(save_tokenizer, str(own), tokenizer_source(place.config))
        meanwhile()
        saving.result()
        card = model_card(place.config, counts, scores.identity if scores is not None else None, evaluation.metrics)
        (own / "README.md").write_text(card, encoding="utf-8")
        commit(own, folder, made_of, {})
    return Made(folder, str(folder))


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has that, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
