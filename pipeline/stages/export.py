"""Trained weights -> a folder that loads elsewhere: weights, config, tokenizer, chat template, model card.

An adapter is exported as peft reads it, or merged into its base.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo.lm.adapter_files import other_base
from pipeline.config import HuggingFacePolicy
from pipeline.data.tokenizer import save_tokenizer, tokenizer_source
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.process import Process
from pipeline.record import Made
from pipeline.report.card import model_card, shown_path
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.merged import facts_of_adapter, merge_into_base
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
    merges = weights.adapter is not None and place.config.export.merge
    made_of = {
        "stage": "export",
        "format": FORMAT_VERSION,
        "weights": weights.mark,
        "metrics": evaluation.metrics,
        "chat_template": inputs.tokenizer.chat_template,
    }
    if merges:
        made_of["merged"] = place.config.export.dtype
    folder = place.run_dir / run_files.EXPORT
    if take_whole(folder, made_of, ADVICE) is None:
        own = begin(folder)
        saving = Process(save_tokenizer, str(own), tokenizer_source(place.config)) if with_tokenizer(place) else None
        meanwhile()
        if merges:
            place.terminal.live("export", "merging the adapter into its base")
            facts = merge_into_base(place, weights, own)
        else:
            _link_all(weights.folder if weights.adapter is None else weights.adapter.folder, own)
            facts = {} if weights.adapter is None else facts_of_adapter(weights)
        theirs = None if inputs.adapter is None else other_base(inputs.adapter, place.config.policy.path or "")
        if theirs is not None:
            facts["Base that the first adapter names"] = f"{shown_path(theirs)}, which is not the one it was put on"
        if saving is not None:
            saving.result()
        reference = scores.identity if scores is not None else None
        card = model_card(place.config, counts, reference, facts, evaluation.metrics)
        (own / "README.md").write_text(card, encoding="utf-8")
        commit(own, folder, made_of, {})
    return Made(folder, str(folder))


def with_tokenizer(place: Place) -> bool:
    """Whether the tokenizer belongs to the folder; an adapter's is its base's, unless another one was given."""
    config = place.config
    adapted = isinstance(config.policy, HuggingFacePolicy) and config.policy.adapter is not None
    own = config.tokenizer.path not in (None, config.policy.path) or config.tokenizer.chat_template is not None
    return not adapted or config.export.merge or own


def _link_all(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.name not in (MANIFEST, MAKER):
            _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has that, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
