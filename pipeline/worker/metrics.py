"""Sums over the micro-batches of all ranks -> the metrics of a step. The device is waited for once."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.worker.rank import Rank

Sums = dict[str, Any]  # name -> a number, or a float64 scalar on the device

# Sums of tokens: of all sequences apart, of what stands in the batches, and that with padding.
LOGICAL, FILLED, COMPUTED = "logical tokens", "filled tokens", "computed tokens"


def add(sums: Sums, values: Sums) -> None:
    """Add values to the sums of the same names."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value


class Total(NamedTuple):
    """The sums of all ranks, still on the device."""

    names: list[str]
    values: Tensor  # float64, one value per name

    def read(self, denominator: int, **others: Any) -> dict[str, float]:
        """Wait for the sums and divide them; `others` are read along with them and not divided."""
        beside = [torch.as_tensor(value, dtype=torch.float64, device=self.values.device) for value in others.values()]
        began = time.monotonic()
        found = torch.stack([*self.values.unbind(), *beside]).tolist()
        waited = {"perf/gpu_wait_seconds": time.monotonic() - began} if self.values.device.type == "cuda" else {}
        total = dict(zip(self.names, found[: len(self.names)], strict=True))
        logical, filled, computed = (total.pop(name) for name in (LOGICAL, FILLED, COMPUTED))
        fractions = {"perf/padding_fraction": 1 - filled / computed, "perf/shared_fraction": 1 - filled / logical}
        metrics = {name: value / denominator for name, value in total.items()} | fractions | waited
        return metrics | dict(zip(others, found[len(self.names) :], strict=True))


def reduced(me: Rank, kind: str, sums: Sums) -> Total:
    """Add up the sums of all ranks. `kind` ("train" or "eval") tells metrics apart that have other names."""
    if kind not in me.names:  # a rank with nothing to do has no sums of metrics, and hears their names from the others
        found: list[list[str]] = [[]] * me.world_size
        dist.all_gather_object(found, list(sums))
        me.names[kind] = list(dict.fromkeys(name for names in found for name in names))
    mine = [torch.as_tensor(sums.get(name, 0.0), dtype=torch.float64, device=me.device) for name in me.names[kind]]
    values = torch.stack(mine)
    dist.all_reduce(values)
    return Total(me.names[kind], values)
