"""Trained weights -> a folder that loads elsewhere: weights, config, tokenizer, chat template, model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.card import model_card
from pipeline.place import Place
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.score import Scores
from pipeline.stages.start import Start
from pipeline.store.artifacts import begin, commit, find

FORMAT = 1


def export(place: Place, weights: Start, scores: Scores | None, evaluation: Evaluation) -> Path:
    """Write `runs/<name>/export`."""
    made_of = {
        "stage": "export",
        "format": FORMAT,
        "weights": weights.digest,
        "metrics": evaluation.metrics,
        "chat_template": place.tokenizer.chat_template,
    }
    folder = place.run_dir / "export"
    if find(folder, made_of) is None:
        begin(folder)
        for path in weights.folder.iterdir():
            if path.name != "manifest.json":
                _link(path, folder / path.name)
        place.tokenizer.save_pretrained(folder)
        card = model_card(
            place.config, place.counts, scores.identity if scores is not None else None, evaluation.metrics
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        commit(folder, made_of, {})
    place.terminal.say(str(folder))
    return folder


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has that, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
