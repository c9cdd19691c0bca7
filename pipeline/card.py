"""The model card of an exported policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import Config


def model_card(config: Config, counts: dict[str, Any], reference: str, metrics: dict[str, float]) -> str:
    """Markdown: what the model was trained from, on what, how, and what came of it."""
    # Of a path only its last part: the rest says how somebody's disk is laid out.
    path = config.policy.path
    policy = (
        f"a random {config.policy.kind} model"
        if path is None
        else Path(path).name
        if Path(path).is_absolute()
        else path
    )
    sft = f"{config.sft.epochs} epoch(s) on {config.sft.completions}" if config.sft.epochs else "none"
    pairs = " / ".join(f"{counts[f'pairs_{what}']:,}" for what in ("read", "used", "rejected"))
    train = config.train
    options = [
        f"{name.replace('_', ' ')} {value:g}" for name, value in config.loss.model_dump(exclude={"kind"}).items()
    ]
    facts = {
        "Started from": policy,
        "Supervised training before": sft,
        "Pairs read / used / rejected": pairs,
        "Reference (identity of its log-probs)": f"the policy's own start, `{reference}`",
        "Loss": ", ".join([config.loss.kind, *options]),
        "Epochs, pairs a step, steps": f"{config.train.epochs}, {config.train.batch_pairs}, {counts['steps']:,}",
        "Learning rate": f"{train.learning_rate:g}, {train.schedule}, warm-up {train.warmup_fraction:g}",
        "Weight decay, gradient clipping": f"{config.train.weight_decay:g}, {config.train.max_grad_norm:g}",
        "Precision": f"{config.train.dtype}, DeepSpeed ZeRO stage {config.deepspeed.stage}",
        "Longest sequence": f"{config.data.max_length:,} tokens, {config.data.truncation}",
        "Seed": str(config.run.seed),
        "Loss, first and last step": f"{counts['loss_first']:.4f}, {counts['loss_last']:.4f}",
    }
    facts |= {name: f"{value:.4f}" for name, value in metrics.items()}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    library = "transformers" if config.policy.kind == "huggingface" else "x-transformers"
    return (
        f"---\nlibrary_name: {library}\ntags: [dpo, preference-alignment, ray-align]\n---\n\n"
        f"# {config.run.name}\n\nAligned by direct preference optimisation with ray-align.\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
    )
