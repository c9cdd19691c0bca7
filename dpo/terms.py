"""The loss of a run as plain values: terms with their options and weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Losses that never read the reference's log-probs.
REFERENCE_FREE = frozenset({"sft", "simpo", "orpo", "cpo"})
# Losses whose terms depend on all pairs of a step: they need the whole step, and a term belongs to no single pair.
COUPLED = frozenset({"aot", "aot_unpaired"})
# Losses whose terms are divided by the chosen tokens of the step. All others are divided by its pairs.
PER_TOKEN = frozenset({"sft"})


@dataclass(frozen=True)
class Term:
    """One loss of a mixture."""

    kind: str  # a key of LOSSES
    options: Mapping[str, float | str] = field(default_factory=dict)  # keyword arguments of the loss function
    weight: float = 1.0
    ld_alpha: float = 1.0  # weight of the longer completion's extra tokens: LD-DPO, eq. 8 of arXiv:2409.06411
    wpo: bool = False  # weight pairs by their likelihood under the policy: eq. 2 of arXiv:2406.11827
    running_baseline: bool = False  # shift the rewards of bco_pair by the mean reward of all steps so far

    @property
    def coupled(self) -> bool:
        """Tell whether a pair's term depends on the other pairs of its step."""
        return self.kind in COUPLED or self.running_baseline


Mixture = tuple[Term, ...]  # the loss is their weighted sum


def reference_free(mixture: Mixture) -> bool:
    """Tell whether no term reads the reference."""
    return all(term.kind in REFERENCE_FREE for term in mixture)


def reward_scale(mixture: Mixture) -> float:
    """Return the factor from log-ratios to rewards: the beta of the first term that has one, else 1."""
    return next((float(term.options["beta"]) for term in mixture if "beta" in term.options), 1.0)


def couples(mixture: Mixture) -> bool:
    """Tell whether a term needs the log-probs of the whole step in advance."""
    return any(term.coupled for term in mixture)


def needs_agreement(mixture: Mixture) -> bool:
    """Tell whether a term needs `Logps.agreement`."""
    return any(term.wpo for term in mixture)


def compares_means(mixture: Mixture) -> bool:
    """Tell whether rewards are means over tokens, as in TRL for these losses."""
    return mixture[0].kind in ("simpo", "orpo")


def for_evaluation(mixture: Mixture, baseline: float) -> Mixture:
    """Return the mixture for held-out pairs: without WPO's weights, and with the current baseline as a constant."""
    return tuple(
        replace(term, wpo=False, running_baseline=False, options={**term.options, "baseline": baseline})
        if term.running_baseline
        else replace(term, wpo=False)
        for term in mixture
    )
