"""What a run minimises, as plain values: losses with their options and weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# These never read the reference's log-probs.
REFERENCE_FREE = frozenset({"sft", "simpo", "orpo", "cpo"})
# Of these a term depends on all pairs given: a step must be given whole, and its terms belong to ranks, not to pairs.
COUPLED = frozenset({"aot", "aot_unpaired"})
# Of these the terms are divided by the step's chosen tokens, of all others by its pairs.
PER_TOKEN = frozenset({"sft"})


@dataclass(frozen=True)
class Term:
    """One loss of a mixture."""

    kind: str  # a key of LOSSES
    options: Mapping[str, float | str] = field(default_factory=dict)  # that function's keyword arguments
    weight: float = 1.0
    ld_alpha: float = 1.0  # of the tokens that the longer completion has more: LD-DPO, eq. 8 of arXiv:2409.06411
    wpo: bool = False  # weight pairs by how likely the policy is to write them: eq. 2 of arXiv:2406.11827
    running_baseline: bool = False  # bco_pair's reward shift: the mean reward of all steps so far

    @property
    def coupled(self) -> bool:
        """Whether a pair's term depends on the other pairs of its step."""
        return self.kind in COUPLED or self.running_baseline


Mixture = tuple[Term, ...]  # the loss is their weighted sum


def reference_free(mixture: Mixture) -> bool:
    """Whether no term looks at a reference."""
    return all(term.kind in REFERENCE_FREE for term in mixture)


def reward_scale(mixture: Mixture) -> float:
    """beta of the first term that has one: what turns a log-ratio into a reward."""
    return next((float(term.options["beta"]) for term in mixture if "beta" in term.options), 1.0)


def couples(mixture: Mixture) -> bool:
    """Whether a term needs the log-probs of the whole step beforehand."""
    return any(term.coupled for term in mixture)


def needs_agreement(mixture: Mixture) -> bool:
    """Whether a term needs `Logps.agreement`."""
    return any(term.wpo for term in mixture)


def compares_means(mixture: Mixture) -> bool:
    """Whether a reward is a mean over tokens, as in TRL for these losses."""
    return mixture[0].kind in ("simpo", "orpo")


def for_evaluation(mixture: Mixture, baseline: float) -> Mixture:
    """What held-out pairs are measured by: no weights of sampling (WPO), and the baseline as it stands."""
    return tuple(
        replace(term, wpo=False, running_baseline=False, options={**term.options, "baseline": baseline})
        if term.running_baseline
        else replace(term, wpo=False)
        for term in mixture
    )
