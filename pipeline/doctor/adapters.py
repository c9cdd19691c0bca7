"""Findings about an adapter's settings, which no check of the data can make."""

from __future__ import annotations

from dpo.lm.adapter_files import why_not_served
from pipeline.config import Config, HuggingFacePolicy
from pipeline.doctor.findings import Finding
from pipeline.models.adapted import given_keys

LEAST_RATE = 1e-5  # of an adapter; published ones are trained above it
NARROW = ("bfloat16", "float16")


def of_adapter(config: Config) -> list[Finding]:
    """Look at the settings of [policy.adapter], and at those that go with it."""
    policy = config.policy
    if not isinstance(policy, HuggingFacePolicy) or policy.adapter is None:
        return []
    found, trained = [], policy.adapter.path is not None or config.sft.epochs > 0
    if trained and config.reference.model == "base":
        found.append(
            Finding(
                "reference-base",
                "warning",
                "the reference is the base, and the start is a trained adapter",
                "Policy and reference then differ from the first step on, so the first loss is not ln 2 and the pull "
                "is away from what the adapter was trained for.",
                'Set reference.model = "start", unless that is what you want.',
            )
        )
    if config.train.learning_rate < LEAST_RATE:
        found.append(
            Finding(
                "adapter-rate",
                "warning",
                f"train.learning_rate = {config.train.learning_rate:g} hardly moves an adapter",
                "The second matrix of each pair starts at 0, and rates that suit whole training leave it there. "
                "Adapters are trained at 1e-5 to 2e-4.",
                f"Raise it to {LEAST_RATE:g} or more.",
            )
        )
    if config.export.merge and (config.export.dtype in NARROW or (config.export.dtype == "auto" and _narrow(config))):
        found.append(
            Finding(
                "merge-narrow",
                "note",
                "a merged model in 16 bits may lose the adapter",
                "Changes that are small beside a weight round away. The loss is measured, and the export refused "
                "above a tenth.",
                'Set export.dtype = "float32", or export the adapter itself.',
            )
        )
    against = why_not_served(given_keys(policy.adapter))
    if against is not None and not config.export.merge:
        found.append(
            Finding(
                "not-served",
                "note",
                f"vLLM will not serve this adapter beside its base: {against}",
                "It serves plain LoRA pairs on linear layers.",
                "Leave that out, or set export.merge = true.",
            )
        )
    return found


def _narrow(config: Config) -> bool:
    """Whether the base is probably in 16 bits, as it is trained."""
    return config.train.dtype == "bfloat16" and config.policy.path is not None
