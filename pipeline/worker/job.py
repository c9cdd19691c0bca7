"""The job of a group of workers, and its answer, as plain values. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dpo.lm.adapter_files import ALONE, Worn
from dpo.terms import Mixture


class Questions(NamedTuple):
    """Prompts that the workers answer at every evaluation, greedily."""

    row_ids: list[int]  # of the held-out pairs that they come from
    prompts: list[list[int]]  # as token ids
    max_new_tokens: int  # of one answer
    eos_id: int


@dataclass(frozen=True)
class Job:
    """The work of a group of workers."""

    mixture: Mixture  # preference losses; empty for supervised training
    imitated: tuple[str, ...]  # sides that supervised training imitates: "chosen", "rejected"
    pad_id: int
    may_share: bool  # whether a prompt may be computed once for its completions, as far as the configuration says
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
    deterministic: bool = False
    lease: tuple[str, str] | None = None  # path and token of the lease that the driver holds; None: nobody else comes
    guard_allows_rounding: bool = False  # above the tolerance, too, a gap passes that the policy's own noise explains
    worn: Worn = ALONE  # an adapter, which alone is trained then, and how the model's own weights are quantized
    base: tuple[str, str | None] = ("", None)  # digest of the model under an adapter, and its name for readers
    compared: str = "start"  # what the reference is: the "start" of training, its "base" or a model "apart"
    reference: str = ""  # identity of the reference
    acts: bool = False  # the adapter that training starts from is a given one, and changes its base
    second_rate: float = 1.0  # learning rate of the second matrix of each pair, as a multiple
    questions: Questions | None = None  # None: evaluations give numbers alone
    verdict: str | None = None  # the note of a rank that is out of memory; None: in the folder of logs

    @property
    def note(self) -> str:
        return self.verdict or f"{self.logs}/out-of-memory.txt"

    @property
    def stop(self) -> str:
        """The file that asks the workers to save a checkpoint and end."""
        return f"{self.note}.stop"

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Best(NamedTuple):
    """The best evaluation so far."""

    value: float
    step: int
    checkpoint: str  # name of its folder


class Done(NamedTuple):
    """The answer of a group."""

    steps: int
    weights_step: int  # after which the weights were as they were written
    best: Best | None
    loss_first: float
    loss_last: float
    peak_bytes: int  # resident, of the largest worker
    baseline: float  # of bco_pair, after the last step
    unshared: str | None  # why every sequence repeated its prompt; None: prompts were shared
    compared: str | None = None  # what the guard compared, where the reference is not the start
