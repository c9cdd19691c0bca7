"""Metrics, evaluation and answers of a run -> arrays that the report page and its diagnoses read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import run_files
from pipeline.store.logs import read_steps
from pipeline.store.parquet import row_groups
from pipeline.store.tokens import lists

LN_2 = math.log(2)  # the loss of a policy that is its reference
MASKS = ("chosen_mask", "rejected_mask")


class Curve(NamedTuple):
    """One metric over the optimizer steps."""

    steps: np.ndarray
    values: np.ndarray

    def first(self, share: float = 0.1) -> float:
        """Return the mean of the first values; `share`: of all of them."""
        return float(self.values[: max(1, int(len(self.values) * share))].mean())

    def last(self, share: float = 0.1) -> float:
        """Return the mean of the last values."""
        return float(self.values[-max(1, int(len(self.values) * share)) :].mean())


class HeldOut(NamedTuple):
    """The held-out pairs, one value per pair. Log-probs are sums over an answer's scored tokens, in nats."""

    row_id: np.ndarray
    reference_chosen: np.ndarray
    chosen_moved: np.ndarray  # log-prob under the trained policy minus that under the reference
    rejected_moved: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """By how much training moved the chosen answer more than the rejected one, in nats."""
        return self.chosen_moved - self.rejected_moved


class Evidence(NamedTuple):
    """All that a diagnosis may look at."""

    curves: dict[str, Curve]  # by the name of the metric
    held_out: HeldOut | None  # None without held-out pairs, or with a loss that has no reference
    answers: list[dict[str, Any]]  # prompt, chosen, rejected, before, after, during, for each prompt that was answered
    max_grad_norm: float  # 0: gradients are not clipped


def read_evidence(run_dir: Path, parts: list[Path], max_grad_norm: float) -> Evidence:
    """Read metrics, evaluation and answers of a run.

    Args:
        parts: the held-out pairs as tokens, which have the lengths of the answers.
    """
    folder = run_dir / run_files.EVALUATION
    return Evidence(read_curves(run_dir / run_files.METRICS), _held_out(folder, parts), _answers(folder), max_grad_norm)


def read_curves(path: Path) -> dict[str, Curve]:
    """Read the metrics of a run by name; none where the file is missing."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_steps(path)[0]:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):  # null: it was not finite
                found.setdefault(name, []).append((row["step"], value))
    return {name: Curve(*np.array(points).T) for name, points in found.items()}


def _held_out(folder: Path, parts: list[Path]) -> HeldOut | None:
    tables = [pq.read_table(path) for path in sorted(folder.glob("pairs-*.parquet"))]
    if not tables or "reference_chosen" not in tables[0].column_names:
        return None
    pairs = pa.concat_tables(tables)
    columns = {name: pairs[name].to_numpy() for name in pairs.column_names}
    lengths = dict(_lengths(parts))
    tokens = np.array([lengths[number] for number in columns["row_id"].tolist()]).reshape(-1, 2)
    return HeldOut(
        row_id=columns["row_id"],
        reference_chosen=columns["reference_chosen"],
        chosen_moved=columns["policy_chosen"] - columns["reference_chosen"],
        rejected_moved=columns["policy_rejected"] - columns["reference_rejected"],
        chosen_tokens=tokens[:, 0],
        rejected_tokens=tokens[:, 1],
    )


def _lengths(parts: list[Path]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Return the row id of each pair, and how many tokens of its answers are scored."""
    for path in parts:
        for table in row_groups(path):
            scored = [[int(mask.sum()) for mask in lists(table[name])] for name in MASKS]
            yield from zip(table["row_id"].to_pylist(), zip(*scored, strict=True), strict=True)


def _answers(folder: Path) -> list[dict[str, Any]]:
    path = folder / run_files.ANSWERS
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
