"""What an optimizer step is about: pairs against a cached reference, or completions to imitate.

Both turn rows of a step into micro-batches and log-probs into sums; the loop knows no difference between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

from dpo.batch import PairBatch, SequenceBatch, collate, collate_pairs, scatter_scored
from dpo.step import StepSums, preference_step, sft_step
from pipeline.store.tokens import lengths, lists, sides


class Rows:
    """The pairs of one optimizer step, unpacked once."""

    def __init__(self, table: pa.Table):
        self.row_ids: list[int] = table["row_id"].to_pylist()
        self.prompt, self.chosen, self.rejected = (
            lengths(table[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")
        )
        self.sides = {name: sides(table, name) for name in ("chosen", "rejected")}
        self.logps = (
            {name: lists(table[f"{name}_logps"]) for name in ("chosen", "rejected")}
            if "chosen_logps" in table.column_names
            else None
        )

    def __len__(self) -> int:
        return len(self.row_ids)


class Objective(Protocol):
    sequences: int  # that a pair brings

    def widths(self, rows: Rows) -> np.ndarray: ...

    def tokens(self, rows: Rows) -> np.ndarray:
        """Logical tokens of each pair: what a layout without padding or sharing computes."""
        ...

    def denominator(self, rows: Rows) -> int:
        """What the sums of the whole step are divided by, once."""
        ...

    def collate(self, rows: Rows, indices: Sequence[int]) -> SequenceBatch: ...

    def terms(self, logps: Tensor, batch: SequenceBatch, rows: Rows, indices: Sequence[int]) -> StepSums: ...


@dataclass(frozen=True)
class Preference:
    """A preference loss; divided by pairs."""

    loss: str
    loss_options: dict[str, float]
    pad_id: int
    sequences: int = 2

    def widths(self, rows: Rows) -> np.ndarray:
        return rows.prompt + np.maximum(rows.chosen, rows.rejected)

    def tokens(self, rows: Rows) -> np.ndarray:
        return 2 * rows.prompt + rows.chosen + rows.rejected

    def denominator(self, rows: Rows) -> int:
        return len(rows)

    def collate(self, rows: Rows, indices: Sequence[int]) -> PairBatch:
        chosen, rejected = ([rows.sides[name][i] for i in indices] for name in ("chosen", "rejected"))
        return collate_pairs(chosen, rejected, self.pad_id)

    def terms(self, logps: Tensor, batch: SequenceBatch, rows: Rows, indices: Sequence[int]) -> StepSums:
        assert rows.logps is not None, "rows of a preference step carry reference log-probs"
        values = [rows.logps[name][i] for name in ("chosen", "rejected") for i in indices]
        reference = scatter_scored(values, batch.completion_mask).to(logps.device)
        sums = preference_step(logps, reference, self.loss, self.loss_options)
        gap = (logps.detach() - reference).abs().sum()
        return StepSums(sums.loss, {**sums.metrics, GAP: gap, SCORED: batch.completion_mask[:, 1:].sum()})


# Sums that the step-0 guard needs beside the metrics.
GAP, SCORED = "|policy - reference|", "scored tokens"


@dataclass(frozen=True)
class Supervised:
    """Negative log-likelihood of completions; divided by scored tokens."""

    completions: tuple[str, ...]  # of "chosen", "rejected"
    pad_id: int

    @property
    def sequences(self) -> int:
        return len(self.completions)

    def widths(self, rows: Rows) -> np.ndarray:
        return rows.prompt + np.maximum.reduce([getattr(rows, name) for name in self.completions])

    def tokens(self, rows: Rows) -> np.ndarray:
        return sum((rows.prompt + getattr(rows, name) for name in self.completions), np.zeros(len(rows), np.int64))

    def denominator(self, rows: Rows) -> int:
        return sum(int(np.sum(side.mask)) for name in self.completions for side in rows.sides[name])

    def collate(self, rows: Rows, indices: Sequence[int]) -> SequenceBatch:
        return collate([rows.sides[name][i] for name in self.completions for i in indices], self.pad_id)

    def terms(self, logps: Tensor, batch: SequenceBatch, rows: Rows, indices: Sequence[int]) -> StepSums:
        return sft_step(logps)
