"""Means and variances over masked entries, of one rank or of all of them.

Wherever `reduce` is taken, it adds a tensor up over all ranks and gives every rank the sum; the identity on one rank.
Sums are taken in float64: counts stay exact, and two ranks give what one gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def alone(total: Tensor) -> Tensor:
    """The sum over the ranks, where there is one."""
    return total


def masked_mean(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    """Mean of the entries where `mask` is not 0, over all axes or one.

    Raises:
        ValueError: over all axes, the mask is empty. Along an axis an empty mask gives 0.
    """
    if axis is None:
        _refuse_empty(mask.sum(), mask)
        return (values * mask).sum() / mask.sum()
    return (values * mask).sum(axis) / mask.sum(axis).clamp(min=1)


def masked_moments(values: Tensor, mask: Tensor, reduce: Reduce = alone) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, population variance, count) of the masked entries of all ranks, as float64 scalars.

    Raises:
        ValueError: no rank has an entry.
    """
    inside = mask.bool()
    chosen = values[inside].double()
    total, count = reduce(torch.stack([chosen.sum(), inside.sum().double()]))
    _refuse_empty(count, mask)
    mean = total / count
    return mean, reduce((chosen - mean).square().sum()) / count, count


def masked_var(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance of the masked entries, divided by their number less one if `unbiased`; of a single entry 0.

    Raises:
        ValueError: the mask is empty.
    """
    _, variance, count = masked_moments(values, mask)
    return (_bessel(variance, count) if unbiased else variance).to(values.dtype)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce = alone) -> Tensor:
    """Scale the masked entries to unit variance, and to mean 0 or back to their mean; the others become 0.

    The variance is divided by the count less one, and 1e-8 is added under the root. TRL computes it on each rank apart
    and leaves numbers outside the mask: there whitened rewards flow back from the padding.
    """
    mean, variance, count = masked_moments(values, mask, reduce)
    scale = (_bessel(variance, count) + 1e-8).rsqrt()
    whitened = (values.double() - mean) * scale
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, 0.0).to(values.dtype)


def whiten(values: Tensor, shift_mean: bool = True) -> Tensor:
    """`masked_whiten` of all entries."""
    return masked_whiten(values, torch.ones_like(values), shift_mean)


def get_global_statistics(
    accelerator: Any, xs: Tensor, mask: Tensor | None = None, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, int]:
    """One mean, one population variance and the count over all entries of all ranks; mean and variance on `device`.

    `accelerator` is accelerate's, or None on a single process. TRL sums what the mask leaves out as well.

    Raises:
        ValueError: no rank has an entry.
    """
    reduce = alone if accelerator is None else summing(accelerator)
    mean, variance, count = masked_moments(xs, torch.ones_like(xs) if mask is None else mask, reduce)
    dtype = xs.dtype if xs.is_floating_point() else torch.float32
    return mean.to(device, dtype), variance.to(device, dtype), int(count)


def summing(accelerator: Any) -> Reduce:
    """Accelerate's sum over the ranks; the given tensor stays what it is."""
    return lambda total: accelerator.reduce(total.clone(), reduction="sum")


class RunningMoments:
    """Mean and standard deviation of all scores seen so far, by all ranks (Chan et al., parallel variance).

    `std` is divided by the count less one, and 1 until two scores are seen.
    """

    def __init__(self, reduce: Reduce = alone):
        self.reduce = reduce
        self.mean, self.var, self.std, self.count = 0.0, 1.0, 1.0, 0

    @torch.no_grad()
    def update(self, xs: Tensor) -> tuple[float, float]:
        """Take in a batch of scores, any shape; returns the batch's own mean and standard deviation (of one: 0)."""
        mean, variance, counted = (float(x) for x in masked_moments(xs, torch.ones_like(xs), self.reduce))
        count = int(counted)
        total, shift = self.count + count, mean - self.mean
        squares = variance * count + self.var * self.count + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.var, self.count = squares / total, total
        self.std = (squares / (total - 1)) ** 0.5 if total > 1 else 1.0
        return mean, (variance * count / (count - 1)) ** 0.5 if count > 1 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "var": self.var, "std": self.std, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.var, self.std, self.count = state["mean"], state["var"], state["std"], state["count"]


def _bessel(variance: Tensor, count: Tensor) -> Tensor:
    return variance * count / (count - 1).clamp(min=1)


def _refuse_empty(count: Tensor, mask: Tensor) -> None:
    if count == 0:
        raise ValueError(f"the mask of shape {tuple(mask.shape)} leaves no entry: there is nothing to average")
