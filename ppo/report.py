"""The statistics of a step, under TRL's names, over the samples of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ppo.statistics import masked_mean


class Sample(NamedTuple):
    """What a step knows of one sample, on the CPU. T-1 columns: one for each token behind the first."""

    query_length: int
    response_length: int
    score: Tensor  # ()
    mask: Tensor  # (T-1)
    logprobs: Tensor  # (T-1)
    ref_logprobs: Tensor  # (T-1)
    non_score: Tensor  # (T-1), the penalty
    kl: Tensor  # (T-1)


def matrix(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths -> one matrix, with zeros behind the shorter ones."""
    return pad_sequence([row.float() for row in rows], batch_first=True)


def step_statistics(samples: list[Sample], kl_coef: float, train_stats: dict[str, Any]) -> dict[str, Any]:
    """Samples of all ranks -> `objective/`, `ppo/` and `tokens/`. Standard deviations of one sample are 0."""
    columns = Sample(*zip(*samples, strict=True))  # type: ignore[arg-type]
    mask, logprobs, reference, non_score, kl = (
        matrix(rows)  # type: ignore[arg-type]
        for rows in (columns.mask, columns.logprobs, columns.ref_logprobs, columns.non_score, columns.kl)
    )
    scores = torch.stack(columns.score)  # type: ignore[arg-type]
    kls = (kl * mask).sum(-1)
    stats: dict[str, Any] = {
        "objective/kl": float(kls.mean()),
        "objective/kl_k1": float(((logprobs - reference) * mask).sum(-1).mean()),
        "objective/kl_dist": kls.numpy(),
        "objective/logprobs": logprobs.numpy(),
        "objective/ref_logprobs": reference.numpy(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float((-logprobs * mask).sum(-1).mean()),
        "ppo/mean_non_score_reward": float(masked_mean(non_score, mask)),
        "ppo/mean_scores": float(scores.mean()),
        "ppo/std_scores": spread(scores),
    }
    for name, lengths in (("queries", columns.query_length), ("responses", columns.response_length)):
        counted = torch.tensor(lengths).float()
        stats |= {
            f"tokens/{name}_len_mean": float(counted.mean()),
            f"tokens/{name}_len_std": spread(counted),
            f"tokens/{name}_dist": counted.numpy(),
        }
    stats |= {f"ppo/{name}": over_mini_batches(value) for name, value in train_stats.items()}
    variance = stats["ppo/returns/var"]
    # Where all returns are one number there is nothing to explain.
    stats["ppo/val/var_explained"] = 1 - stats["ppo/val/error"] / variance if variance > 0 else 0.0
    return stats


def over_mini_batches(value: Any) -> Any:
    """Rows of mini-batches -> their mean: a number, or an array where rows are longer. What is no tensor stays."""
    return single(value.double().mean(0) if isinstance(value, Tensor) else value)


def single(value: Any) -> Any:
    """`as_plain`, and an array of one number becomes that number."""
    plain = as_plain(value)
    return float(plain.item()) if isinstance(plain, np.ndarray) and plain.shape in ((), (1,)) else plain


def spread(values: Tensor) -> float:
    """Standard deviation, divided by the number less one; of one value 0."""
    return float(values.std()) if len(values) > 1 else 0.0


def gathered(items: list[Any], accelerator: Any) -> list[Any]:
    """Everybody's items, those of rank 0 first."""
    return gather_object(items) if accelerator.num_processes > 1 else items


def gather_stats(stats: dict[str, Any], accelerator: Any) -> dict[str, Any]:
    """One rank's statistics -> those of all: numbers are averaged, arrays and tensors put one behind the other.

    Ranks have equal batches, so a plain mean is the mean over samples. Arrays of different widths get zeros behind
    the narrower ones. TRL adds arrays up entry by entry: there entry 3 of rank 0 and of rank 1, two samples that have
    nothing to do with each other, become one.
    """
    if accelerator.num_processes == 1:
        return dict(stats)
    parts = gathered([{name: as_plain(value) for name, value in stats.items()}], accelerator)
    return {name: _together([part[name] for part in parts]) for name in stats}


def as_plain(value: Any) -> Any:
    """A tensor of any dtype and device -> numpy, of a single number -> float; anything else stays."""
    if not isinstance(value, Tensor):
        return value
    tensor = value.detach().cpu()
    array = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    return float(array) if array.ndim == 0 else array


def _together(values: list[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        if values[0].ndim == 2:
            width = max(value.shape[1] for value in values)
            values = [np.pad(value, ((0, 0), (0, width - value.shape[1]))) for value in values]
        return np.concatenate(values)
    if isinstance(values[0], (int, float)):
        return sum(values) / len(values)
    return values[0]
