"""The model card of an exported policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.terms import Term
from pipeline.config import Config, HuggingFacePolicy


def model_card(
    config: Config, counts: dict[str, Any], reference: str | None, beside: dict[str, str], metrics: dict[str, float]
) -> str:
    """Return the card in Markdown: the model's origin, its data, its training and its metrics.

    Args:
        reference: identity of the reference's log-probs; None for a loss without a reference.
        beside: further facts by name: what its adapter is, and what merging did.
    """
    facts = (
        training_facts(config, counts, reference) | beside | {name: f"{value:.4f}" for name, value in metrics.items()}
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    library = "transformers" if config.policy.kind == "huggingface" else "x-transformers"
    adapted = isinstance(config.policy, HuggingFacePolicy) and config.policy.adapter is not None
    if adapted and not config.export.merge:
        named = None if config.policy.path is None else shown_path(config.policy.path)
        library = "peft" if named is None else f"peft\nbase_model: {named}"
    return (
        f"---\nlibrary_name: {library}\ntags: [dpo, preference-alignment, ray-align]\n---\n\n"
        f"# {config.run.name}\n\nTrained on preference pairs with ray-align.\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
    )


def training_facts(config: Config, counts: dict[str, Any], reference: str | None) -> dict[str, str]:
    """Return where a policy comes from and how it was trained, by name."""
    path = config.policy.path
    policy = f"a random {config.policy.kind} model" if path is None else shown_path(path)
    adapter = config.policy.adapter if isinstance(config.policy, HuggingFacePolicy) else None
    if adapter is not None and adapter.path is not None:
        policy += f" with the adapter {shown_path(adapter.path)}"
    sft = f"{config.sft.epochs} epoch(s) on {config.sft.completions}" if config.sft.epochs else "none"
    pairs = " / ".join(f"{counts[f'pairs_{what}']:,}" for what in ("read", "used", "rejected"))
    train = config.train
    source = "none" if reference is None else f"{_named(config.reference.model)}, `{reference}`"
    return {
        "Started from": policy,
        "Supervised training before": sft,
        "Pairs read / used / rejected": pairs,
        "Reference (identity of its log-probs)": source,
        "Loss": " + ".join(map(_term, config.mixture)),
        "Epochs, pairs a step, steps": f"{train.epochs}, {train.batch_pairs}, {counts['steps']:,}",
        "Learning rate": f"{train.learning_rate:g}, {train.schedule}, warm-up {train.warmup_fraction:g}",
        "Weight decay, gradient clipping": f"{train.weight_decay:g}, {train.max_grad_norm:g}",
        "Precision": f"{train.dtype}, DeepSpeed ZeRO stage {config.deepspeed.stage}",
        "Longest sequence": f"{config.data.max_length:,} tokens, {config.data.truncation}",
        "Seed": str(config.run.seed),
        "Loss, first and last step": f"{counts['loss_first']:.4f}, {counts['loss_last']:.4f}",
    }


def shown_path(path: str) -> str:
    """A name, or the last part of a path: the rest describes somebody's disk."""
    return Path(path).name if Path(path).is_absolute() else path


def _named(reference: str) -> str:
    """The reference that reference.model names."""
    words = {"start": "the policy's own start", "base": "the base"}
    return words.get(reference) or shown_path(reference)


def _term(term: Term) -> str:
    """Describe one loss: its kind, its options, and the settings that differ from their defaults."""
    shown = [f"{name.replace('_', ' ')} {value}" for name, value in term.options.items()]
    own = {"weight": (term.weight, 1.0), "LD alpha": (term.ld_alpha, 1.0), "WPO": (term.wpo, False)}
    own["running baseline"] = (term.running_baseline, False)
    return ", ".join(
        [term.kind, *shown, *(f"{name} {value}" for name, (value, plain) in own.items() if value != plain)]
    )
