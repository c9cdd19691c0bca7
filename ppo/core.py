"""The helpers of TRL's `trl.core` that scripts import, under their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TopKLogitsWarper, TopPLogitsWarper, set_seed

from ppo.generation import LengthSampler
from ppo.losses import clip_by_value, entropy_from_logits, logprobs_from_logits
from ppo.report import as_plain
from ppo.statistics import masked_mean, masked_var, masked_whiten, whiten

__all__ = [
    "WANDB_PADDING",
    "LengthSampler",
    "PPODecorators",
    "clip_by_value",
    "convert_to_scalar",
    "entropy_from_logits",
    "flatten_dict",
    "logprobs_from_logits",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "respond_to_batch",
    "set_seed",
    "stack_dicts",
    "stats_to_np",
    "top_k_top_p_filtering",
    "whiten",
]
WANDB_PADDING = -1  # what `stack_dicts` writes behind shorter rows


def flatten_dict(nested: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """Dictionaries within dictionaries -> one, names joined by `sep`.

    Raises:
        ValueError: a name has `sep` in it.
    """
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if sep in name:
            raise ValueError(f"the name {name!r} has {sep!r} in it, which joins names here: give another sep")
        inner = flatten_dict(value, sep) if isinstance(value, Mapping) else None
        found |= {name: value} if inner is None else {f"{name}{sep}{below}": each for below, each in inner.items()}
    return found


def stack_dicts(stats_dicts: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Dictionaries of one kind -> one: a row for each, flattened, with -1 behind the shorter ones."""
    rows = {name: [torch.as_tensor(one[name]).flatten() for one in stats_dicts] for name in stats_dicts[0]}
    return {name: pad_sequence(each, batch_first=True, padding_value=WANDB_PADDING) for name, each in rows.items()}


def stats_to_np(stats_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors -> numpy arrays on the CPU, numbers -> floats; anything else stays."""
    plain = {name: as_plain(value) for name, value in stats_dict.items()}
    return {name: float(value) if isinstance(value, (int, float)) else value for name, value in plain.items()}


def convert_to_scalar(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors and arrays of a single number -> that number; anything else stays."""
    single = {
        name: value.item()
        for name, value in stats.items()
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim < 2 and value.shape in ((), (1,))
    }
    return {**stats, **single}


def top_k_top_p_filtering(
    logits: Tensor, top_k: int = 0, top_p: float = 1.0, filter_value: float = -float("inf"), min_tokens_to_keep: int = 1
) -> Tensor:
    """(B, V) logits, those that are not among the `top_k`, or not in the nucleus `top_p`, set to `filter_value`."""
    no_tokens = torch.empty(0, dtype=torch.long)
    options: dict[str, Any] = {"filter_value": filter_value, "min_tokens_to_keep": min_tokens_to_keep}
    if top_k > 0:
        logits = TopKLogitsWarper(top_k, **options)(no_tokens, logits)  # type: ignore[arg-type]
    if 0 <= top_p < 1:
        logits = TopPLogitsWarper(top_p, **options)(no_tokens, logits)  # type: ignore[arg-type]
    return logits


@torch.no_grad()
def respond_to_batch(
    model: nn.Module, queries: Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """`txt_len` tokens sampled behind each row of `queries` (B, T) of equal lengths: (B, txt_len).

    Without a cache: `PPOTrainer.generate` is faster, and takes queries of different lengths.
    """
    tokens = queries
    for _ in range(txt_len):
        logits = top_k_top_p_filtering(model(tokens)[0][:, -1], top_k, top_p)
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], dim=-1)
    return tokens[:, -txt_len:]


class PPODecorators:
    """For methods of trainers: `@PPODecorators.empty_device_cache()`."""

    optimize_device_cache: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def empty_device_cache(cls) -> Iterator[None]:
        """Empty the device's cache afterwards, if the class says so. A trainer does, after a step, by its config."""
        yield
        if cls.optimize_device_cache and torch.accelerator.is_available():
            torch.accelerator.memory.empty_cache()
