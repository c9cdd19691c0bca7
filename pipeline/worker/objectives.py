"""Objectives of an optimizer step: a preference loss on pairs, or the likelihood of completions.

Both turn the rows of a step into sequences, and log-probs into sums. The loop treats them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dpo.lm.batch import SequenceBatch
from dpo.lm.head import Logps
from dpo.lm.logprobs import Way, sequence_logps
from dpo.lm.sequences import TokenSequence
from dpo.losses import PairLogps
from dpo.step import Baseline, Coupling, StepSums, preference_step, sft_step
from dpo.terms import Mixture, for_evaluation
from pipeline.store.tokens import lengths, lists, sides
from pipeline.worker.job import Job

SIDES = ("chosen", "rejected")


class Rows:
    """The pairs of one optimizer step, unpacked once."""

    def __init__(self, table: pa.Table):
        self.row_ids: list[int] = table["row_id"].to_pylist()
        self.prompt, self.chosen, self.rejected = (
            lengths(table[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")
        )
        self.sides = {name: sides(table, name) for name in SIDES}
        self.logps = (
            {name: lists(table[f"{name}_logps"]) for name in SIDES} if "chosen_logps" in table.column_names else None
        )

    def __len__(self) -> int:
        return len(self.row_ids)

    @cached_property
    def scored(self) -> dict[str, int]:
        """Count the scored tokens of each side."""
        return {name: sum(int(np.sum(s.mask)) for s in side) for name, side in self.sides.items()}

    def reference(self) -> PairLogps:
        """Return the reference's summed log-probs; zeros for a loss without a reference."""
        if self.logps is None:
            return PairLogps(*torch.zeros(2, len(self), dtype=torch.float64))
        sums = ([float(np.sum(v, dtype=np.float64)) for v in self.logps[name]] for name in SIDES)
        return PairLogps(*(torch.tensor(values, dtype=torch.float64) for values in sums))


class Costs:
    """The tokens that each pair adds to a micro-batch, in the form that `plan.plan_step` takes."""

    def __init__(self, prompt: np.ndarray, completions: Sequence[np.ndarray], way: Way, row_each: bool):
        if way.shared:
            self.tokens = prompt + sum(completions, np.zeros_like(prompt))
            self.padded_rows = 1 if row_each else 0
        else:
            self.tokens = prompt + np.maximum.reduce(list(completions))
            self.padded_rows = len(completions)

    def of(self, indices: list[int]) -> int:
        """Count the positions that a micro-batch computes, padding included."""
        tokens = self.tokens[indices]
        return int(len(indices) * self.padded_rows * tokens.max(initial=0) if self.padded_rows else tokens.sum())


class MicroBatch(NamedTuple):
    """Some pairs of a step, laid out on the device."""

    indices: list[int]  # of the pairs; none: the batch is a stand-in, computed since other ranks' collectives wait
    batch: SequenceBatch
    reference: Tensor | None  # [S] log-probs of the scored tokens under the reference; None where rows have none


class Objective(Protocol):
    @property
    def sides(self) -> tuple[str, ...]:
        """Name the completions of a pair that are computed."""
        ...

    @property
    def mixture(self) -> Mixture:
        """Return the preference losses; empty if completions are imitated."""
        ...

    def denominator(self, rows: Rows) -> int:
        """Return the number by which the sums of the whole step are divided, once."""
        ...

    def for_evaluation(self, baseline: Baseline) -> Objective: ...

    def terms(self, policy: Logps, micro: MicroBatch, rows: Rows, coupling: Coupling | None) -> StepSums: ...


def sequences(objective: Objective, rows: Rows, indices: Sequence[int]) -> list[TokenSequence]:
    """Return the sequences of some pairs: the first side of all pairs, then the second side."""
    return [rows.sides[name][i] for name in objective.sides for i in indices]


def lay_out(
    collate: Callable[[list[TokenSequence], int], SequenceBatch], objective: Objective, rows: Rows, indices: list[int]
) -> MicroBatch:
    """Lay out some pairs of a step; for no pairs, the shortest one.

    Args:
        collate: makes the batch of so many pairs.
    """
    computed = indices or [int((rows.prompt + rows.chosen + rows.rejected).argmin())]
    batch = collate(sequences(objective, rows, computed), len(computed))
    if rows.logps is None or not objective.mixture:
        return MicroBatch(indices, batch, None)
    logps = [rows.logps[name][i] for name in objective.sides for i in computed]
    return MicroBatch(indices, batch, batch.flat(logps))


def logical_tokens(objective: Objective, rows: Rows) -> np.ndarray:
    """Count the tokens of each pair, without padding and without sharing of prompts."""
    return sum((rows.prompt + getattr(rows, name) for name in objective.sides), np.zeros(len(rows), np.int64))


def costs(objective: Objective, rows: Rows, way: Way, row_each: bool) -> Costs:
    return Costs(rows.prompt, [getattr(rows, name) for name in objective.sides], way, row_each)


@dataclass(frozen=True)
class Preference:
    """One or several preference losses, divided by the number of pairs."""

    mixture: Mixture
    sides: tuple[str, ...] = SIDES

    def denominator(self, rows: Rows) -> int:
        return len(rows)

    def for_evaluation(self, baseline: Baseline) -> Preference:
        return Preference(for_evaluation(self.mixture, baseline.mean))

    def terms(self, policy: Logps, micro: MicroBatch, rows: Rows, coupling: Coupling | None) -> StepSums:
        batch, reference = micro.batch, micro.reference
        pairs_per_token = len(rows) / max(1, rows.scored["chosen"])
        sums = preference_step(batch, policy, reference, self.mixture, pairs_per_token, coupling)
        if reference is None:
            return sums
        differences = policy.logps.detach() - reference
        chosen, rejected = sequence_logps(batch, differences).chunk(2)
        for_guard = {
            GAP: differences.abs().sum(),
            PAIR_GAP: (chosen - rejected).abs().sum(),
            SCORED: batch.counts.sum(),
        }
        return StepSums(sums.loss, {**sums.metrics, **for_guard})


# Names of the sums that the step-0 guard needs in addition to the metrics.
GAP, PAIR_GAP, SCORED = GUARDED = "|policy - reference|", "|margin of log-ratios|", "scored tokens"


@dataclass(frozen=True)
class Supervised:
    """The negative log-likelihood of completions, divided by the number of scored tokens."""

    sides: tuple[str, ...]
    mixture: Mixture = ()

    def denominator(self, rows: Rows) -> int:
        return sum(rows.scored[name] for name in self.sides)

    def for_evaluation(self, baseline: Baseline) -> Supervised:
        return self

    def terms(self, policy: Logps, micro: MicroBatch, rows: Rows, coupling: Coupling | None) -> StepSums:
        return sft_step(policy)


def objective_of(job: Job) -> Objective:
    """Return the objective of a job: its preference losses, or the likelihood of completions."""
    return Preference(job.mixture) if job.mixture else Supervised(job.imitated)
