"""Groups of sequences in one row, and who attends to whom among them: segments, which one call of attention computes.

T positions in the row, C segments, K keys of all segments together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpo.lm.transfer import moved


class Group(NamedTuple):
    """The place of a group of sequences: `shared` positions from `start` on, then its tails, one after another."""

    start: int  # position counted over all rows
    shared: int
    tails: tuple[int, ...]


@dataclass(frozen=True)
class Segments:
    """The attention of one row of groups, made once a batch for all layers.

    The first segment of a group is its shared part with its first tail; each further tail is a segment, whose keys are
    those of the shared part and its own. In every segment the last query sees all keys, the one before all but one.
    """

    groups: tuple[Group, ...]
    rows: Tensor | None  # [K] int64: positions of the keys, segment by segment; None: each position once, in order
    query_ends: Tensor  # [C + 1] int32: where segments end among the T queries, from 0 on
    key_ends: Tensor  # [C + 1] int32: the same among the K keys
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Segments:
        """Make the segments of groups that fill one row in order."""
        pieces, queries, keys = [], [], []
        for group in groups:
            first = group.shared + sum(group.tails[:1])
            pieces.append((group.start, first))
            queries.append(first)
            keys.append(first)
            at = group.start + first
            for tail in group.tails[1:]:
                pieces += [(group.start, group.shared), (at, tail)]
                queries.append(tail)
                keys.append(group.shared + tail)
                at += tail
        longest = max(queries, default=0), max(keys, default=0)
        shared = len(queries) > len(groups)
        return cls(tuple(groups), _joined(pieces) if shared else None, _ends(queries), _ends(keys), *longest)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that have to lie on the device of the attention, by name."""
        found = {"rows": self.rows, "query_ends": self.query_ends, "key_ends": self.key_ends}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device) -> Segments:
        return replace(self, **dict(zip(self.tensors, moved([*self.tensors.values()], device), strict=True)))

    def on(self, device: torch.device) -> Segments:
        """The segments on a device; a copy is made once for each card over which the layers are spread."""
        if device == self.query_ends.device:
            return self
        if device not in self._copies:
            self._copies[device] = self.to(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, Segments]:
        return {}

    @cached_property
    def masks(self) -> tuple[Tensor, ...]:
        """The mask of each further tail, for attention that has a call for each."""
        with torch.inference_mode(False):  # else no backward pass could keep them
            return tail_masks(self.groups, self.query_ends.device)


def _joined(pieces: list[tuple[int, int]]) -> Tensor:
    """Join stretches of positions, each given by its start and length."""
    starts, lengths = np.array(pieces, np.int64).T
    before = lengths.cumsum() - lengths
    return torch.from_numpy(np.repeat(starts - before, lengths) + np.arange(lengths.sum()))


def _ends(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))


def tail_masks(groups: Sequence[Group], device: torch.device) -> tuple[Tensor, ...]:
    """Make the mask of each tail but the first of each group: [tail, shared + tail] bool."""
    return tuple(lower_right(tail, group.shared + tail, device) for group in groups for tail in group.tails[1:])


def lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return a causal mask that aligns the last query with the last key: [queries, keys] bool."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
