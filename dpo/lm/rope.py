"""Rotary positions that depend on the longest sequence of a batch, computed for each of its rows by itself.

Two kinds of them look at the length: "longrope" has other frequencies above a number of positions, "dynamic" has others
for each length above one. The library takes the length of the longest row, and keeps what the batch before left behind.
So a short sequence would get other log-probs beside a long one. R rows of T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("longrope", "dynamic")


class RowByRow:
    """The rotary positions of a network, as each row of a batch would have them alone."""

    lengths: tuple[int, ...] | None = None  # tokens of each row of the batch; None: as the library takes them

    @contextmanager
    def of(self, lengths: tuple[int, ...] | None) -> Iterator[None]:
        """Compute a batch with rows of these lengths inside the block."""
        self.lengths = lengths
        try:
            yield
        finally:
            self.lengths = None

    def compute(
        self, forward: Callable[..., Any], reset: bool, x: Tensor, position_ids: Tensor, *others: Any, **named: Any
    ) -> Any:
        """Compute cosines and sines for the positions [1 or R, T]; beyond a row's length they are those of its end.

        Args:
            forward: the library's, which looks at the largest position that it is given.
            reset: whether the library keeps the longest length so far. One position sets it back.
        """
        found = {}
        rows = self.lengths or (int(position_ids.shape[1]),)
        for length in dict.fromkeys(rows):
            if reset:
                forward(x, torch.zeros_like(position_ids[:1, :1]), *others, **named)
            places = position_ids[:1].clamp(max=length - 1) if self.lengths else position_ids
            found[length] = forward(x, places, *others, **named)
        if len(found) == 1:
            return found[rows[0]]
        alone = [found[length] for length in rows]
        if isinstance(alone[0], Tensor):
            return torch.cat(alone)
        return tuple(torch.cat(parts) for parts in zip(*alone, strict=True))


def row_by_row_(network: nn.Module) -> RowByRow | None:
    """Let a network compute such rotary positions row by row, in place. None: it has none of these kinds."""
    found: RowByRow | None = None
    for module in network.modules():
        kinds = vars(module).get("rope_type")
        named = kinds.values() if isinstance(kinds, dict) else (kinds,)
        if not any(kind in KINDS for kind in named):
            continue
        before = vars(module).get("forward")
        if isinstance(before, partial) and isinstance(of := getattr(before.func, "__self__", None), RowByRow):
            return of  # the network is held by two models
        found = found or RowByRow()
        module.forward = partial(found.compute, module.forward, "dynamic" in named)
    return found
