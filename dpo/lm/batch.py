"""Token ids -> tensors: what is where in a batch is said here and nowhere else.

N sequences, B pairs, S scored tokens. Sequences are laid out in R rows of T positions, in one of two ways:

- padded: one row a sequence, each repeats its prompt, padded on the right (a causal model never looks right, so no
  mask is needed);
- shared: sequences of one prompt form a group. What they all begin with stands there once, their tails follow one
  after another. Positions of every tail restart behind the shared part, and a tail sees that part and itself only. All
  groups stand in one row without padding, or in a row each, padded to the longest.

Either way the log-probs of a batch are one vector [S]: the scored tokens of sequence 0, then of sequence 1, and so on.
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
    """Where a group of sequences stands: `shared` positions from `start` on, then its tails, one behind another."""

    start: int  # counted over all rows
    shared: int
    tails: tuple[int, ...]


@dataclass(frozen=True)
class ScoredTokens:
    """How many scored tokens each of N sequences has: what a vector [S] of their values means."""

    counts: Tensor  # [N] int64

    def grid(self, values: Tensor) -> Tensor:
        """[S] values of scored tokens -> [N, most of a sequence], zero where a sequence has fewer."""
        width = int(self.counts.max())
        inside = torch.arange(width, device=values.device) < self.counts[:, None]
        return torch.zeros(inside.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)

    def flat(self, values: Sequence[Sequence[float] | np.ndarray]) -> Tensor:
        """Values of each sequence's scored tokens -> [S] float32.

        Raises:
            ValueError: a sequence has another number of values than of scored tokens.
        """
        counts = self.counts.tolist()
        if counts != [len(v) for v in values]:
            raise ValueError(f"scored tokens a sequence: {counts}, values given: {[len(v) for v in values]}")
        return torch.from_numpy(np.concatenate([np.asarray(v, np.float32) for v in values])).to(self.counts.device)


@dataclass(frozen=True)
class SequenceBatch(ScoredTokens):
    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor  # [R, T] int64
    sources: Tensor  # [U] int64: the position, counted over all rows, whose hidden state predicts a target
    targets: Tensor  # [U] int64: the token that is predicted there; what two sequences share is computed once
    scored: Tensor  # [S] int64 into sources and targets, in the order of the sequences
    read: Tensor  # int64: the positions among the sources, each once
    groups: tuple[Group, ...] | None  # None: padded
    filled: int  # positions that are not padding

    def to(self, device: torch.device) -> SequenceBatch:
        names = ("counts", "input_ids", "position_ids", "sources", "targets", "scored", "read")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def tokens(self) -> int:
        """Positions that the model computes, padding included."""
        return self.input_ids.numel()


def collate(sequences: Sequence[TokenSequence], pad_id: int) -> SequenceBatch:
    """The padded layout: a row a sequence."""
    ids = [_joined(s) for s in sequences]
    rows = [(s, np.arange(len(s))) for s in ids]
    input_ids, position_ids = _rows(rows, pad_id)
    width = input_ids.shape[1]
    places = [row * width + np.arange(len(s)) for row, s in enumerate(ids)]
    return _batch(sequences, ids, places, input_ids, position_ids, None, sum(map(len, ids)))


def collate_shared(
    sequences: Sequence[TokenSequence], pad_id: int, row_each: bool = False, labels: Sequence[int] | None = None
) -> SequenceBatch:
    """The shared layout: sequences of one prompt form a group, equal ones are laid out once.

    Args:
        row_each: a row for each group, padded to the longest; else one row for all of them, without padding.
        labels: of each sequence; those of different labels share nothing. Left out, all may share.
    """
    by_prompt = same_prompt(sequences, labels)
    ids = [_joined(s) for s in sequences]
    groups: list[Group] = []
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    inside: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)  # of each sequence: its places in its group
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
    """Indices of the sequences of each prompt; those of different labels stay apart."""
    found: dict[tuple[int, bytes], list[int]] = {}
    for number, s in enumerate(sequences):
        prompt = np.asarray(s.prompt_ids, np.int64).tobytes()
        found.setdefault((0 if labels is None else labels[number], prompt), []).append(number)
    return list(found.values())


def _joined(s: TokenSequence) -> np.ndarray:
    return np.concatenate([np.asarray(s.prompt_ids, np.int64), np.asarray(s.completion_ids, np.int64)])


def _group(ids: list[np.ndarray]) -> tuple[Group, tuple[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Sequences that begin alike -> their group at 0, its ids and positions, and where in it each token stands."""
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
    """How many tokens all of them begin with."""
    shortest = min(len(s) for s in ids)
    for s in ids[1:]:
        different = np.flatnonzero(s[:shortest] != ids[0][:shortest])
        shortest = int(different[0]) if len(different) else shortest
    return shortest


def _rows(rows: Iterable[tuple[np.ndarray, np.ndarray]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and positions of each row, padded to the longest."""
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
    """What is scored: token t is predicted at t - 1, and the mask follows that *target*. Nothing predicts a token 0."""
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
