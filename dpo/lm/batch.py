"""Token ids -> tensors: the only file that knows the layout of a batch.

N sequences, S scored tokens. Sequences are laid out in R rows of T positions, in one of two ways:

- padded: one row per sequence, each with its prompt, padded on the right. No mask is needed, because a causal model
  never looks right.
- shared: sequences of one prompt form a group. Their common beginning is stored once; their tails follow one after
  another. The positions of each tail continue those of the shared part, and a tail attends to that part and itself
  only. All groups are in one row without padding, or each group has a row, padded to the longest.

In both layouts the log-probs of a batch are one vector [S]: the scored tokens of sequence 0, then of sequence 1, etc.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpo.lm.sequences import TokenSequence


class Group(NamedTuple):
    """The place of a group of sequences: `shared` positions from `start` on, then its tails, one after another."""

    start: int  # position counted over all rows
    shared: int
    tails: tuple[int, ...]


@dataclass(frozen=True)
class ScoredTokens:
    """The number of scored tokens in each of N sequences, which divides a vector [S] among them."""

    counts: Tensor  # [N] int64

    def grid(self, values: Tensor) -> Tensor:
        """Arrange [S] values of scored tokens as [N, largest count], with zeros after shorter sequences."""
        width = int(self.counts.max())
        inside = torch.arange(width, device=values.device) < self.counts[:, None]
        return torch.zeros(inside.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)

    def flat(self, values: Sequence[Sequence[float] | np.ndarray]) -> Tensor:
        """Join the values of each sequence's scored tokens to [S] float32.

        Raises:
            ValueError: a sequence does not have one value per scored token.
        """
        counts = self.counts.tolist()
        if counts != [len(v) for v in values]:
            raise ValueError(f"scored tokens per sequence: {counts}, values given: {[len(v) for v in values]}")
        return torch.from_numpy(np.concatenate([np.asarray(v, np.float32) for v in values])).to(self.counts.device)


@dataclass(frozen=True)
class SequenceBatch(ScoredTokens):
    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor  # [R, T] int64
    sources: Tensor  # [U] int64: positions, counted over all rows, whose hidden states predict the targets
    targets: Tensor  # [U] int64: the predicted tokens; a pair (source, target) that sequences share occurs once
    scored: Tensor  # [S] int64: index into sources and targets, in the order of the sequences
    read: Tensor  # int64: the unique positions in sources
    groups: tuple[Group, ...] | None  # None in the padded layout
    filled: int  # number of positions that are not padding

    def to(self, device: torch.device) -> SequenceBatch:
        names = ("counts", "input_ids", "position_ids", "sources", "targets", "scored", "read")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def tokens(self) -> int:
        """The number of positions that the model computes, padding included."""
        return self.input_ids.numel()


def collate(sequences: Sequence[TokenSequence], pad_id: int) -> SequenceBatch:
    """Lay out sequences in the padded layout, with one row per sequence."""
    ids = [_joined(s) for s in sequences]
    rows = [(s, np.arange(len(s))) for s in ids]
    input_ids, position_ids = _rows(rows, pad_id)
    width = input_ids.shape[1]
    places = [row * width + np.arange(len(s)) for row, s in enumerate(ids)]
    return _batch(sequences, ids, places, input_ids, position_ids, None, sum(map(len, ids)))


def collate_shared(
    sequences: Sequence[TokenSequence], pad_id: int, row_each: bool = False, labels: Sequence[int] | None = None
) -> SequenceBatch:
    """Lay out sequences in the shared layout. Sequences of one prompt form a group; equal sequences are stored once.

    Args:
        row_each: use a row per group, padded to the longest; otherwise one row for all groups, without padding.
        labels: one per sequence; sequences with different labels share nothing. By default all may share.
    """
    by_prompt = same_prompt(sequences, labels)
    ids = [_joined(s) for s in sequences]
    groups: list[Group] = []
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    inside: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)  # for each sequence, its positions in its group
    for members in by_prompt:
        group, row, places = _group([ids[i] for i in members])
        groups.append(group)
        rows.append(row)
        for i, place in zip(members, places, strict=True):
            inside[i] = place
    filled = sum(len(row[0]) for row in rows)
    if not row_each:
        starts = np.cumsum([0, *(len(row[0]) for row in rows[:-1])])
        rows = [(np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows]))]
        input_ids, position_ids = _rows(rows, pad_id)
    else:
        input_ids, position_ids = _rows(rows, pad_id)
        starts = np.arange(len(rows)) * input_ids.shape[1]
    for start, members in zip(starts, by_prompt, strict=True):
        for i in members:
            inside[i] = inside[i] + start
    placed = tuple(group._replace(start=int(start)) for group, start in zip(groups, starts, strict=True))
    return _batch(sequences, ids, inside, input_ids, position_ids, placed, filled)


def same_prompt(sequences: Sequence[TokenSequence], labels: Sequence[int] | None = None) -> list[list[int]]:
    """Group the indices of sequences by prompt; sequences with different labels stay apart."""
    found: dict[tuple[int, bytes], list[int]] = {}
    for number, s in enumerate(sequences):
        prompt = np.asarray(s.prompt_ids, np.int64).tobytes()
        found.setdefault((0 if labels is None else labels[number], prompt), []).append(number)
    return list(found.values())


def _joined(s: TokenSequence) -> np.ndarray:
    return np.concatenate([np.asarray(s.prompt_ids, np.int64), np.asarray(s.completion_ids, np.int64)])


def _group(ids: list[np.ndarray]) -> tuple[Group, tuple[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Make a group, with start 0, of sequences with one prompt.

    Returns:
        The group, its ids and positions, and for each sequence the places of its tokens in the group.
    """
    shared = _common(ids)
    tails: dict[bytes, int] = {}  # the tail's ids -> where it starts
    parts, positions, lengths, places = [ids[0][:shared]], [np.arange(shared)], [], []
    end = shared
    for s in ids:
        tail = s[shared:]
        if tail.tobytes() not in tails:
            tails[tail.tobytes()] = end
            parts.append(tail)
            positions.append(np.arange(shared, len(s)))
            lengths.append(len(tail))
            end += len(tail)
        start = tails[tail.tobytes()]
        places.append(np.concatenate([np.arange(shared), np.arange(start, start + len(tail))]))
    row = np.concatenate(parts), np.concatenate(positions)
    return Group(0, shared, tuple(n for n in lengths if n)), row, places


def _common(ids: list[np.ndarray]) -> int:
    """Return the length of the common beginning of all sequences."""
    shortest = min(len(s) for s in ids)
    for s in ids[1:]:
        different = np.flatnonzero(s[:shortest] != ids[0][:shortest])
        shortest = int(different[0]) if len(different) else shortest
    return shortest


def _rows(rows: Iterable[tuple[np.ndarray, np.ndarray]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad the ids and positions of all rows to the longest row."""
    rows = list(rows)
    width = max(len(ids) for ids, _ in rows)
    input_ids = np.full((len(rows), width), pad_id, np.int64)
    position_ids = np.zeros((len(rows), width), np.int64)
    for row, (ids, positions) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        position_ids[row, : len(ids)] = positions
    return input_ids, position_ids


def _batch(
    sequences: Sequence[TokenSequence],
    ids: list[np.ndarray],
    places: list[np.ndarray],
    input_ids: np.ndarray,
    position_ids: np.ndarray,
    groups: tuple[Group, ...] | None,
    filled: int,
) -> SequenceBatch:
    """Find the sources and targets. Token t is predicted at t - 1; the mask is that of the *target*, t.

    No position predicts token 0 of a sequence.
    """
    sources, targets, counts = [], [], []
    for s, tokens, place in zip(sequences, ids, places, strict=True):
        at = np.flatnonzero(np.asarray(s.mask, bool)) + len(s.prompt_ids)
        at = at[at > 0]
        sources.append(place[at - 1])
        targets.append(tokens[at])
        counts.append(len(at))
    both = np.stack([np.concatenate(sources), np.concatenate(targets)], axis=1)
    unique, scored = np.unique(both, axis=0, return_inverse=True)
    tensors = (
        np.array(counts),
        input_ids,
        position_ids,
        unique[:, 0].copy(),
        unique[:, 1].copy(),
        scored.reshape(-1),
        np.unique(unique[:, 0]),
    )
    return SequenceBatch(*(torch.from_numpy(t) for t in tensors), groups, filled)  # type: ignore[arg-type]
