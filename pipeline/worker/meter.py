"""How much of its cards' peak speed a step used: its useful FLOP over what the cards could have done meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dpo.lm.flops import shared_work, training_flops
from dpo.lm.model_config import Shape, read_config
from pipeline.worker.job import Job
from pipeline.worker.objectives import Objective, Rows


class Meter(NamedTuple):
    """A model and the cards that train it."""

    shape: Shape
    peak: float  # FLOP/s of all cards together
    adapter: float | None = None  # parameters of the adapter that alone is trained

    @classmethod
    def of(cls, job: Job, peak: float | None, world_size: int, adapter: float | None = None) -> Meter | None:
        """Return the meter of a job; None where the card or the sizes of the model are unknown.

        Args:
            peak: FLOP/s of one card in the job's dtype.
            adapter: its parameters, where it alone is trained.
        """
        if peak is None:
            return None
        try:
            shape = Shape.of(read_config(Path(job.model)))
        except KeyError:
            return None
        return cls(shape, peak * world_size, adapter)

    def share(self, objective: Objective, rows: Rows, seconds: float) -> float:
        """Compute the share of the peak. Useful is what the shared layout needs, however the step was laid out."""
        scored = sum(rows.scored[name] for name in objective.sides)
        work = shared_work(rows.prompt, [getattr(rows, name) for name in objective.sides], scored)
        return training_flops(self.shape, work, self.adapter) / (seconds * self.peak)
