"""The model card of a trained policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppo.config import PPOConfig

CARD = """---
library_name: transformers
tags: [ppo, reinforcement-learning, ray-align]
---

# {name}

A language model{head}, trained with {method} by ray-align: {steps} steps of
{samples} samples.
{loading}

| setting | value |
| --- | --- |
{settings}
"""
LOADING = """
```python
from ppo import AutoModelForCausalLMWithValueHead  # or AutoModelForSeq2SeqLMWithValueHead

model = AutoModelForCausalLMWithValueHead.from_pretrained("PATH")
```

Without the head it loads as any model of transformers.
"""
PLAIN = "\nIt loads as any model of transformers.\n"
METHODS = {
    "gae": "PPO (Schulman et al. 2017)",
    "rloo": "RLOO (Ahmadian et al. 2024), with the clipped loss of PPO",
    "grpo": "GRPO (Shao et al. 2024), with the KL in the reward",
}
SHOWN = (
    "learning_rate", "batch_size", "mini_batch_size", "gradient_accumulation_steps", "ppo_epochs", "init_kl_coef",
    "adap_kl_ctrl", "target", "horizon", "kl_penalty", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef",
    "score_clip", "use_score_scaling", "use_score_norm", "whiten_rewards", "logit_temperature", "seed", "world_size",
    "advantage_estimator",
)  # fmt: skip


def write_card(folder: Path, name: str, config: PPOConfig, steps: int, sampling: dict[str, Any]) -> None:
    """Write README.md; the folder is made where there is none."""
    valued = config.advantage_estimator == "gae"
    folder.mkdir(parents=True, exist_ok=True)
    settings = [f"| {key} | {getattr(config, key)} |" for key in SHOWN]
    settings += [f"| sampling: {key} | {value} |" for key, value in sampling.items()]
    text = CARD.format(
        name=name,
        head=" with a value head" if valued else "",
        method=METHODS[config.advantage_estimator],
        loading=LOADING if valued else PLAIN,
        steps=steps,
        samples=config.global_batch_size,
        settings="\n".join(settings),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
