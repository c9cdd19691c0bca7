"""The section [loss]: a tagged union with one class per kind of loss, and its translation to `dpo.terms`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dpo.terms import Mixture, Term
from pipeline.config.section import Section

Pull = Annotated[
    float, Field(gt=0, description="Strength of the pull to the reference: a larger beta keeps the policy closer.")
]
Smoothing = Annotated[float, Field(ge=0, lt=0.5, description="Probability that chosen and rejected are swapped.")]


class Loss(Section):
    """Keys of every loss. `dpo/losses.py` has the formulas and papers."""

    weight: float = Field(default=1.0, gt=0)
    """Weight of this loss in a sum of several."""

    def terms(self) -> Mixture:
        """Return the loss as plain values: fields of `Term` go by name, all others become options of the loss."""
        settings = self.model_dump()
        own = {name: settings.pop(name) for name in Term.__dataclass_fields__ if name in settings}
        return (Term(**own, options=settings),)


class ReferencedLoss(Loss):
    """Keys of every loss that reads a reference."""

    beta: Pull = 0.1
    ld_alpha: float = Field(default=1.0, ge=0, le=1)
    """LD-DPO: weight of the tokens by which the longer completion exceeds the shorter."""
    wpo: bool = False
    """WPO: weight each pair by its likelihood under the policy."""


class DivergenceLoss(ReferencedLoss):
    """Keys of every loss that reads the difference of two log-ratios."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """Divergence that ties the policy to the reference (f-DPO)."""
    divergence_alpha: float = 0.5
    """The alpha of divergence = "alpha"."""


class SigmoidLoss(DivergenceLoss):
    kind: Literal["sigmoid"] = "sigmoid"
    label_smoothing: Smoothing = 0.0


class MarginLoss(DivergenceLoss):
    kind: Literal["sigmoid_norm", "hinge", "ipo"]


class RobustLoss(DivergenceLoss):
    kind: Literal["robust"]
    label_smoothing: float = Field(gt=0, lt=0.5)
    """Share of the pairs (0 to 0.5) whose chosen and rejected are swapped."""


class ExoPairLoss(DivergenceLoss):
    kind: Literal["exo_pair"]
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """Probability that chosen and rejected are swapped."""


class DiscopopLoss(DivergenceLoss):
    kind: Literal["discopop"]
    tau: float = Field(default=0.05, gt=0, lt=1)
    """Width of the change from the logistic to the exponential loss; a smaller tau changes more sharply."""


class PlainLoss(ReferencedLoss):
    kind: Literal["nca_pair", "sppo_hard", "apo_zero", "apo_down"]


class BcoPairLoss(ReferencedLoss):
    kind: Literal["bco_pair"]
    running_baseline: bool = False
    """Measure rewards against the mean of all rewards so far. Needs a second forward pass."""

    @model_validator(mode="after")
    def _whole_steps(self) -> BcoPairLoss:
        if self.running_baseline and (self.ld_alpha != 1 or self.wpo):
            raise ValueError(
                "loss.running_baseline = true cannot be combined with ld_alpha or wpo; remove them, or the baseline"
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
    """Scales the difference of log-probs; a larger beta separates the two completions more sharply."""
    label_smoothing: Smoothing = 0.0
    nll_weight: float = Field(default=1.0, ge=0)
    """Weight of the negative log-likelihood of the chosen tokens, which is added to the loss."""

    def terms(self) -> Mixture:
        options = {"beta": self.beta, "label_smoothing": self.label_smoothing}
        preference = Term("cpo", options, self.weight)
        return (preference, Term("sft", weight=self.weight * self.nll_weight)) if self.nll_weight else (preference,)


class SimpoLoss(Loss):
    kind: Literal["simpo"]
    beta: float = Field(default=2.0, gt=0)
    """Scales the difference of mean log-probs."""
    gamma: float = Field(default=0.5, ge=0)
    """Margin that the scaled difference should exceed."""


class OrpoLoss(Loss):
    kind: Literal["orpo"]
    odds_weight: float = Field(default=0.1, gt=0)
    """Weight of the odds-ratio term; the likelihood of the chosen completion has weight 1."""


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
    """Losses to sum, each with its weight. [[loss]] tables mean the same."""

    def terms(self) -> Mixture:
        return tuple(term for loss in self.losses for term in loss.terms())


AnyLoss = Annotated[SingleLoss | MixedLoss, Field(discriminator="kind")]
