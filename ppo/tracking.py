"""What a trainer hands to trackers, and its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ppo.config import PPOConfig
from ppo.report import as_plain, gathered, spread

SHOWN = 8  # rows of text for trackers that have no tables


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block takes."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def start(accelerator: Any, config: PPOConfig) -> None:
    """Open the tracker that the configuration names."""
    plain = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str, bool))}
    accelerator.init_trackers(config.tracker_project_name, config=plain, init_kwargs=config.tracker_kwargs)


def log_stats(
    accelerator: Any,
    config: PPOConfig,
    step: int,
    stats: dict[str, Any],
    batch: dict[str, Any],
    rewards: list[Tensor],
    columns_to_log: Sequence[str],
) -> None:
    """Statistics, rewards of all ranks (`env/reward_mean`, `_std`, `_dist`) and some columns of the batch.

    Rewards of different ranks belong to different samples: they are put together, not averaged entry by entry. All
    ranks call this; the main process logs. Without a tracker nothing happens.

    Raises:
        ValueError: the batch lacks one of `columns_to_log`.
    """
    if config.log_with is None:
        return
    missing = [name for name in columns_to_log if name not in batch]
    if missing:
        there = ", ".join(batch) or "none"
        raise ValueError(f"the batch has no column {', '.join(missing)} to log, it has: {there}. Give columns_to_log.")
    own = list(zip(*(batch[name] for name in columns_to_log), (float(r) for r in rewards), strict=True))
    table = gathered(own, accelerator)
    if not accelerator.is_main_process:
        return
    scores = torch.tensor([row[-1] for row in table])
    logs = {name: as_plain(value) for name, value in stats.items()}
    logs |= {
        "env/reward_mean": float(scores.mean()),
        "env/reward_std": spread(scores),
        "env/reward_dist": scores.numpy(),
    }
    columns = [*columns_to_log, "reward"]
    if config.log_with == "wandb":
        logs["game_log"] = import_module("wandb").Table(columns=columns, data=[list(row) for row in table])
    else:
        lines = [columns, ["---"] * len(columns), *table[:SHOWN]]
        logs["game_log"] = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    accelerator.log(logs, step=step)
