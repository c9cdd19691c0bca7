"""The model card of an exported policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.terms import Term
from pipeline.config import Config, HuggingFacePolicy


def model_card(config: Config, counts: dict[str, Any], beside: dict[str, str], metrics: dict[str, float]) -> str:
    """Return the card in Markdown: the model's origin, its data, its training and its metrics.

    Args:
        beside: further facts by name: its reference, its adapter, what merging did.
    """
    facts = training_facts(config, counts, beside) | {name: f"{value:.4f}" for name, value in metrics.items()}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    library = "transformers" if config.policy.kind == "huggingface" else "x-transformers"
    adapted = isinstance(config.policy, HuggingFacePolicy) and config.policy.adapter is not None
    if adapted and not config.export.merge:
        library = f"peft\nbase_model: {_name(config)}" if config.policy.path is not None else "peft"
    return (
        f"---\nlibrary_name: {library}\ntags: [dpo, preference-alignment, ray-align]\n---\n\n"
        f"# {config.run.name}\n\nTrained on preference pairs with ray-align.\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
    )


def training_facts(config: Config, counts: dict[str, Any], beside: dict[str, str]) -> dict[str, str]:
    """Return where a policy comes from and how it was trained, by name. `beside`: further facts."""
    sft = f"{config.sft.epochs} epoch(s) on {config.sft.completions}" if config.sft.epochs else "none"
    pairs = " / ".join(f"{counts[f'pairs_{what}']:,}" for what in ("read", "used", "rejected"))
    train = config.train
    return {
        "Started from": _name(config),
        "Supervised training before": sft,
        "Pairs read / used / rejected": pairs,
        **beside,
        "Loss": " + ".join(map(_term, config.mixture)),
        "Epochs, pairs a step, steps": f"{train.epochs}, {train.batch_pairs}, {counts['steps']:,}",
        "Learning rate": f"{train.learning_rate:g}, {train.schedule}, warm-up {train.warmup_fraction:g}",
        "Weight decay, gradient clipping": f"{train.weight_decay:g}, {train.max_grad_norm:g}",
        "Precision": f"{train.dtype}, DeepSpeed ZeRO stage {config.deepspeed.stage}",
        "Longest sequence": f"{config.data.max_length:,} tokens, {config.data.truncation}",
        "Seed": str(config.run.seed),
        "Loss, first and last step": f"{counts['loss_first']:.4f}, {counts['loss_last']:.4f}",
    }


def _name(config: Config) -> str:
    """The model that training started from. Of a path the last part: the rest describes somebody's disk."""
    path = config.policy.path
    if path is None:
        return f"a random {config.policy.kind} model"
    return Path(path).name if Path(path).is_absolute() else path


def _term(term: Term) -> str:
    """Describe one loss: its kind, its options, and the settings that differ from their defaults."""
    shown = [f"{name.replace('_', ' ')} {value}" for name, value in term.options.items()]
    own = {"weight": (term.weight, 1.0), "LD alpha": (term.ld_alpha, 1.0), "WPO": (term.wpo, False)}
    own["running baseline"] = (term.running_baseline, False)
    return ", ".join(
        [term.kind, *shown, *(f"{name} {value}" for name, (value, plain) in own.items() if value != plain)]
    )
