"""What a group of workers is told, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dpo.lm.logprobs import Way
from pipeline.worker.objectives import Objective


@dataclass(frozen=True)
class Job:
    """What a group of workers is to do, as plain values."""

    objective: Objective
    pad_id: int
    may_share: bool  # whether the model's config allows a prompt to be computed once for its completions
    activation_checkpointing: bool
    step_lengths: list[str]  # files with the lengths of every step's rows, to find the largest micro-batch
    model: str  # the folder that training starts from
    weights: str  # the folder that the trained weights go to
    logs: str  # the folder of metrics.jsonl and audit.jsonl
    checkpoints: str
    fingerprint: str
    deepspeed: dict[str, Any]
    adamw: dict[str, Any]
    dtype: str
    epochs: int
    steps_per_epoch: int
    micro_batch_tokens: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    guard_tolerance: float | None  # None: there is no cached reference that the start must equal
    evaluate_every: int | None
    best_by: str | None  # "loss" or "accuracy": the weights that are written are those of the best evaluation
    checkpoint_minutes: float
    checkpoint_steps: int | None
    keep_checkpoints: int
    audit: bool
    tensorboard: bool
    threads: int | None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Best(NamedTuple):
    """The best evaluation so far."""

    value: float
    step: int
    checkpoint: str  # name of its folder


class Done(NamedTuple):
    steps: int
    weights_step: int  # after which the weights were as they were written
    best: Best | None
    loss_first: float
    loss_last: float
    peak_rss_bytes: int
    baseline: float  # of bco_pair, after the last step
    way: Way
