"""A run's folder -> its settings, how far it came, and its results: whatever of them is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo.lm.whole_folder import read_json
from pipeline.report.evidence import Curve, read_curves
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST
from pipeline.store.lease import holder
from pipeline.store.records import read_manifest

FINISHED = "finished"
LAST_STAGE = "export"


class Number(NamedTuple):
    """A result of a run: its name, its words and how it is written."""

    name: str
    title: str
    form: str


# In the order in which they are shown.
NUMBERS = (
    Number("held_out_accuracy", "held-out accuracy", ".3f"),
    Number("held_out_loss", "held-out loss", "#.4g"),
    Number("held_out_margin", "held-out margin", ".3f"),
    Number("loss_first", "first loss", "#.4g"),
    Number("loss_last", "last loss", "#.4g"),
    Number("steps", "steps", ",.0f"),
    Number("answer_before", "answer before, characters", ",.0f"),
    Number("answer_after", "answer after, characters", ",.0f"),
    Number("pairs_per_second", "pairs/s", ",.1f"),
    Number("seconds", "seconds", ",.0f"),
)
HELD_OUT = {
    "held_out_accuracy": "eval/rewards/accuracies",
    "held_out_loss": "eval/loss",
    "held_out_margin": "eval/rewards/margins",
}


class Result(NamedTuple):
    """The settings, the state and the results of a run, as its folder has them."""

    folder: Path
    settings: dict[str, Any]  # plain values by section.field
    state: str  # FINISHED, or what is missing
    numbers: dict[str, float]  # by the names of NUMBERS; what is not known is left out
    curves: dict[str, Curve]  # by the name of the metric

    @property
    def name(self) -> str:
        return self.folder.name


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run that has begun."""
    return isinstance(read_json(folder / run_files.CONFIG), dict)


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, and its export is there."""
    summary = read_json(folder / run_files.SUMMARY)
    ended = isinstance(summary, dict) and LAST_STAGE in summary.get("seconds", {})
    return ended and read_manifest(folder / run_files.EXPORT / MANIFEST) is not None


def read_result(folder: Path) -> Result:
    """Read what is there of a run."""
    sections = read_json(folder / run_files.CONFIG) or {}
    summary = read_json(folder / run_files.SUMMARY) or {}
    curves = read_curves(folder / run_files.METRICS)
    settings = {f"{section}.{key}": value for section, keys in sections.items() for key, value in (keys or {}).items()}
    numbers = {**_trained(curves), **_summed_up(summary), **_evaluated(folder, curves, summary), **_answers(folder)}
    return Result(folder, settings, _state(folder, sections, summary, curves), numbers, curves)


def _state(folder: Path, sections: dict[str, Any], summary: dict[str, Any], curves: dict[str, Curve]) -> str:
    """FINISHED, or where the run stands."""
    done = list(summary.get("seconds", {}))
    if LAST_STAGE in done:
        return FINISHED
    at = f"step {curves['loss'].steps[-1]:,.0f}{_of_all(folder, sections)}" if "loss" in curves else "no step yet"
    held = holder(folder / run_files.LEASE)
    if held is not None and not held.is_stale:
        return f"not finished: {held.owner or 'a process'} works on it, {at}"
    if done:
        return f"not finished: it was run up to the stage {done[-1]}"
    return f"not finished: stopped at {at}" if "loss" in curves else "not finished: stopped before its first step"


def _of_all(folder: Path, sections: dict[str, Any]) -> str:
    """Say how many steps there are; nothing where the epochs are gone."""
    epochs = read_manifest(folder / run_files.EPOCHS / MANIFEST)
    if epochs is None or "steps" not in epochs.counts:
        return ""
    return f" of {epochs.counts['steps'] * sections['train']['epochs']:,}"


def _trained(curves: dict[str, Curve]) -> dict[str, float]:
    """Return what the metrics of the training steps say."""
    found: dict[str, float] = {}
    if "loss" in curves:
        loss = curves["loss"]
        found = {"loss_first": loss.values[0], "loss_last": loss.values[-1], "steps": loss.steps[-1]}
    if "perf/pairs_per_second" in curves:
        found["pairs_per_second"] = np.median(curves["perf/pairs_per_second"].values)
    return {name: float(value) for name, value in found.items()}


def _summed_up(summary: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of summary.json, which count for more than those of the metrics."""
    found = {name: summary.get(name) for name in ("steps", "loss_first", "loss_last")}
    found["seconds"] = sum(summary["seconds"].values()) if "seconds" in summary else None
    return {name: float(value) for name, value in found.items() if value is not None}


def _evaluated(folder: Path, curves: dict[str, Curve], summary: dict[str, Any]) -> dict[str, float]:
    """Return what the exported weights reach on the held-out pairs; the metrics of that step say it, too."""
    made = read_manifest(folder / run_files.EVALUATION / MANIFEST)
    metrics = made.counts.get("metrics", {}) if made is not None else {}
    if not metrics and "weights_step" in summary:
        step = summary["weights_step"]
        metrics = {name: curve.values[curve.steps == step][-1] for name, curve in curves.items() if step in curve.steps}
    return {name: float(metrics[of]) for name, of in HELD_OUT.items() if of in metrics}


def _answers(folder: Path) -> dict[str, float]:
    """Return how long answers are, in characters, on average."""
    path = folder / run_files.EVALUATION / run_files.ANSWERS
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sides = ("before", "after") if rows else ()
    return {f"answer_{side}": float(np.mean([len(row[side]) for row in rows])) for side in sides}
