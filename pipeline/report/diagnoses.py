"""Faults of a training, in words: each rule looks at one kind of evidence and says what it saw.

The rules are meant to be silent on a healthy run. Their limits are here, and each has a test that plants the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.report.evidence import LN_2, Evidence

FEW_PAIRS, FEW_STEPS, FEW_ANSWERS = 30, 20, 8  # below these a rule has too little to look at


class Diagnosis(NamedTuple):
    """A fault, what shows it, and what helps."""

    name: str
    title: str
    evidence: str
    cure: str


def diagnose(evidence: Evidence) -> list[Diagnosis]:
    """Return what the rules find, in their order."""
    return [found for found in (rule(evidence) for rule in RULES) if found is not None]


def nothing_learned(evidence: Evidence) -> Diagnosis | None:
    """The loss stays at ln 2."""
    loss = evidence.curves.get("loss")
    if loss is None or len(loss.values) < FEW_STEPS or abs(loss.values[0] - LN_2) > 1e-3:
        return None
    if abs(loss.last() - LN_2) > 0.005:
        return None
    return Diagnosis(
        "nothing-learned",
        "The policy has hardly moved",
        f"The loss was {loss.values[0]:.4f} at the first step and is {loss.last():.4f} over the last tenth of the "
        f"steps; ln 2 = {LN_2:.4f} is the loss of a policy that is its reference.",
        "Raise train.learning_rate (by a factor of 3 to 10), or train longer (train.epochs).",
    )


def chosen_falls(evidence: Evidence) -> Diagnosis | None:
    """The chosen answers became less likely as well."""
    held_out = evidence.held_out
    if held_out is None or len(held_out.row_id) < FEW_PAIRS:
        return None
    moved, before = float(held_out.chosen_moved.mean()), float(np.abs(held_out.reference_chosen).mean())
    if moved > -1.0 or moved > -0.1 * before:
        return None
    return Diagnosis(
        "chosen-falls",
        "The chosen answers have become less likely, too",
        f"On the held-out pairs their log-prob fell by {-moved:.1f} nats on average, from {-before:.1f}; that of the "
        f"rejected ones moved by {float(held_out.rejected_moved.mean()):+.1f}. DPO rewards the difference alone, so "
        "both may fall, most of all where chosen and rejected answers are alike.",
        "Add the likelihood of the chosen answers ([[loss]] tables of sigmoid and sft, which is RPO), take loss.kind "
        '= "apo_zero", or lower train.learning_rate or train.epochs.',
    )


def over_optimised(evidence: Evidence) -> Diagnosis | None:
    """The held-out loss rises again, while the training loss falls."""
    held_out, loss = evidence.curves.get("eval/loss"), evidence.curves.get("loss")
    if held_out is None or loss is None or len(held_out.values) < 3:
        return None
    best = int(held_out.values.argmin())
    lowest, last = float(held_out.values[best]), float(held_out.values[-1])
    then = loss.values[loss.steps <= held_out.steps[best]]
    falls = len(then) > 0 and loss.last() < then[-max(1, len(loss.values) // 10) :].mean()
    if last - lowest < max(0.02, 0.05 * lowest) or not falls:
        return None
    return Diagnosis(
        "over-optimised",
        "The held-out loss rises while the training loss falls",
        f"The held-out loss was lowest at step {int(held_out.steps[best]):,} ({lowest:.4f}) and is {last:.4f} at the "
        f"end; the training loss fell on to {loss.last():.4f}.",
        'Set evaluate.best_by = "loss" with evaluate.every_steps, so that the best checkpoint is exported; or train '
        "for fewer epochs, at a lower train.learning_rate, or with a larger loss.beta.",
    )


def length_exploited(evidence: Evidence) -> Diagnosis | None:
    """The longer answer is preferred because it is longer."""
    said = [text for text in (_margins_follow_length(evidence), _answers_grow(evidence)) if text]
    if not said:
        return None
    return Diagnosis(
        "length-exploited",
        "The policy learns length",
        " ".join(said),
        'Take a loss that compares means per token (loss.kind = "sigmoid_norm" or "simpo"), set loss.ld_alpha below '
        "1, or balance the lengths of the data; `ray-align doctor` tells how far length gives the answer away.",
    )


def _margins_follow_length(evidence: Evidence) -> str | None:
    held_out = evidence.held_out
    if held_out is None or len(held_out.row_id) < FEW_PAIRS:
        return None
    longer = held_out.chosen_tokens - held_out.rejected_tokens
    if np.ptp(longer) == 0 or np.ptp(held_out.margins) == 0:
        return None
    found = float(np.corrcoef(longer, held_out.margins)[0, 1])
    if found < 0.6:
        return None
    return (
        f"On the held-out pairs the margin goes with the difference in length (correlation {found:.2f}, in tokens): "
        "the longer an answer is beside the other, the more it gained."
    )


def _answers_grow(evidence: Evidence) -> str | None:
    if len(evidence.answers) < FEW_ANSWERS:
        return None
    sizes = {name: np.mean([len(row[name]) for row in evidence.answers]) for name in ("before", "after", "chosen")}
    if sizes["after"] < 1.5 * sizes["before"] or sizes["after"] < 1.2 * sizes["chosen"]:
        return None
    return (
        f"The policy's answers have grown from {sizes['before']:.0f} to {sizes['after']:.0f} characters on average; "
        f"the chosen ones have {sizes['chosen']:.0f}."
    )


def saturated(evidence: Evidence) -> Diagnosis | None:
    """Nothing is left to learn for most of the training."""
    loss = evidence.curves.get("loss")
    if loss is None or len(loss.values) < FEW_STEPS:
        return None
    half = loss.values[len(loss.values) // 2 :]
    if np.median(half) > 0.02 or loss.values.min() < -1e-6:  # losses without a floor at 0 go on
        return None
    step = int(loss.steps[np.argmax(loss.values < 0.02)])
    return Diagnosis(
        "saturated",
        "Half of the training had nothing left to learn",
        f"The loss is below 0.02 from step {step:,} of {int(loss.steps[-1]):,}, so that the gradients are next to "
        "nothing; what still moves is noise.",
        "Train for fewer steps, or take a smaller loss.beta; if the pairs are this easy, look whether something gives "
        "the answer away (`ray-align doctor`).",
    )


def labels_are_noisy(evidence: Evidence) -> Diagnosis | None:
    """Some held-out pairs are judged the other way round, as firmly as the rest."""
    held_out = evidence.held_out
    if held_out is None or len(held_out.row_id) < FEW_PAIRS:
        return None
    right, wrong = (held_out.margins[held_out.margins > 0], -held_out.margins[held_out.margins < 0])
    share = len(wrong) / len(held_out.margins)
    if not 0.1 <= share <= 0.45 or np.median(right) < 1.0 or np.median(wrong) < 0.6 * np.median(right):
        return None
    return Diagnosis(
        "labels-are-noisy",
        "Some pairs look as if chosen and rejected were swapped",
        f"{share:.0%} of the held-out pairs are decided the other way round, and as firmly as the rest: by "
        f"{np.median(wrong):.1f} nats in the middle, where the others are by {np.median(right):.1f}.",
        "Look at the pairs that went the wrong way, below and in pairs.jsonl. If their labels are wrong, clean the "
        'data, or train with loss.label_smoothing = 0.1 or loss.kind = "robust".',
    )


def clipped(evidence: Evidence) -> Diagnosis | None:
    """Clipping decides the size of nearly every update."""
    norm, limit = evidence.curves.get("grad_norm"), evidence.max_grad_norm
    if norm is None or limit <= 0 or len(norm.values) < FEW_STEPS:
        return None
    share, middle = float((norm.values > limit).mean()), float(np.median(norm.values))
    if share < 0.9 or middle < 5 * limit:
        return None
    return Diagnosis(
        "clipped",
        "Clipping decides the size of nearly every update",
        f"The gradient's norm was above train.max_grad_norm = {limit:g} in {share:.0%} of the steps, and {middle:.3g} "
        "in the middle.",
        "Raise train.max_grad_norm above the usual norm, so that it cuts outliers alone; with Adam the learning rate "
        "need not change.",
    )


RULES: tuple[Callable[[Evidence], Diagnosis | None], ...] = (
    nothing_learned,
    over_optimised,
    chosen_falls,
    length_exploited,
    labels_are_noisy,
    saturated,
    clipped,
)
