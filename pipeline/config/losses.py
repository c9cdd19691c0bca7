"""The section [loss]: a tagged union, each kind with its own options, and what they become for the mathematics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dpo.terms import Mixture, Term
from pipeline.config.section import Section

Pull = Annotated[
    float, Field(gt=0, description="The pull to the reference; a larger beta keeps the policy closer to it.")
]
Smoothing = Annotated[float, Field(ge=0, lt=0.5, description="The chance that a label is the wrong way round.")]


class Loss(Section):
    """What every loss has. Formulas and papers: `dpo/losses.py`."""

    weight: float = Field(default=1.0, gt=0)
    """Of this loss, where several are added up."""

    def terms(self) -> Mixture:
        """As the mathematics takes it: the fields of a Term by name, all others are options of the loss itself."""
        settings = self.model_dump()
        own = {name: settings.pop(name) for name in Term.__dataclass_fields__ if name in settings}
        return (Term(**own, options=settings),)


class ReferencedLoss(Loss):
    """What every loss against a reference has."""

    beta: Pull = 0.1
    ld_alpha: float = Field(default=1.0, ge=0, le=1)
    """LD-DPO: what tokens count that the longer completion has more than the shorter."""
    wpo: bool = False
    """WPO: weight each pair by how likely the policy itself is to write it."""


class DivergenceLoss(ReferencedLoss):
    """What every loss of a difference of log-ratios has."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What keeps the policy at the reference (f-DPO)."""
    divergence_alpha: float = 0.5
    """Of divergence = "alpha"."""


class SigmoidLoss(DivergenceLoss):
    kind: Literal["sigmoid"] = "sigmoid"
    label_smoothing: Smoothing = 0.0


class MarginLoss(DivergenceLoss):
    kind: Literal["sigmoid_norm", "hinge", "ipo"]


class RobustLoss(DivergenceLoss):
    kind: Literal["robust"]
    label_smoothing: float = Field(gt=0, lt=0.5)
    """The share of labels that are the wrong way round."""


class ExoPairLoss(DivergenceLoss):
    kind: Literal["exo_pair"]
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """The chance that a label is the wrong way round."""


class DiscopopLoss(DivergenceLoss):
    kind: Literal["discopop"]
    tau: float = Field(default=0.05, gt=0, lt=1)
    """How sharply it changes over from the logistic to the exponential loss."""


class PlainLoss(ReferencedLoss):
    kind: Literal["nca_pair", "sppo_hard", "apo_zero", "apo_down"]


class BcoPairLoss(ReferencedLoss):
    kind: Literal["bco_pair"]
    running_baseline: bool = False
    """Measure rewards against the mean of all rewards so far; takes a second forward pass."""

    @model_validator(mode="after")
    def _whole_steps(self) -> BcoPairLoss:
        if self.running_baseline and (self.ld_alpha != 1 or self.wpo):
            raise ValueError(
                "loss.running_baseline = true goes with neither ld_alpha nor wpo; leave them out, or the baseline"
            )
        return self


class TransportLoss(Loss):
    kind: Literal["aot", "aot_unpaired"]
    beta: Pull = 0.1
    label_smoothing: Smoothing = 0.0


class SftLoss(Loss):
    kind: Literal["sft"]


class CpoLoss(Loss):
    kind: Literal["cpo"]
    beta: float = Field(default=0.1, gt=0)
    """How sharply the two completions are told apart."""
    label_smoothing: Smoothing = 0.0
    nll_weight: float = Field(default=1.0, ge=0)
    """Of the negative log-likelihood of the chosen tokens, added to it."""

    def terms(self) -> Mixture:
        options = {"beta": self.beta, "label_smoothing": self.label_smoothing}
        preference = Term("cpo", options, self.weight)
        return (preference, Term("sft", weight=self.weight * self.nll_weight)) if self.nll_weight else (preference,)


class SimpoLoss(Loss):
    kind: Literal["simpo"]
    beta: float = Field(default=2.0, gt=0)
    """Scales the difference of mean log-probs."""
    gamma: float = Field(default=0.5, ge=0)
    """The margin that the difference has to pass."""


class OrpoLoss(Loss):
    kind: Literal["orpo"]
    odds_weight: float = Field(default=0.1, gt=0)
    """Of the odds-ratio term, beside the likelihood of the chosen completion."""


SingleLoss = (
    SigmoidLoss
    | MarginLoss
    | RobustLoss
    | ExoPairLoss
    | DiscopopLoss
    | PlainLoss
    | BcoPairLoss
    | TransportLoss
    | SftLoss
    | CpoLoss
    | SimpoLoss
    | OrpoLoss
)


class MixedLoss(Section):
    kind: Literal["mixture"]
    losses: list[Annotated[SingleLoss, Field(discriminator="kind")]] = Field(min_length=1)
    """Losses to add up, each with its weight; [[loss]] tables are the same."""

    def terms(self) -> Mixture:
        return tuple(term for loss in self.losses for term in loss.terms())


AnyLoss = Annotated[SingleLoss | MixedLoss, Field(discriminator="kind")]
