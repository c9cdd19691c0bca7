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
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dpo.lm.segments import Group, Segments
from dpo.lm.sequences import TokenSequence
from dpo.lm.transfer import moved


@dataclass(frozen=True)
class ScoredTokens:
    """The number of scored tokens in each of N sequences, which divides a vector [S] among them.

    The numbers are also kept on the host: to read them from a GPU, the CPU would have to wait for it.
    """

    counts: Tensor  # [N] int64
    on_host: tuple[int, ...] = field(default=(), kw_only=True)  # the same numbers; read from `counts` if not given

    def __post_init__(self) -> None:
        if len(self.on_host) != len(self.counts):
            object.__setattr__(self, "on_host", tuple(self.counts.tolist()))

    def grid(self, values: Tensor) -> Tensor:
        """Arrange [S] values of scored tokens as [N, largest count], with zeros after shorter sequences."""
        rows, width = len(self.on_host), max(self.on_host)
        before = self.counts.cumsum(0) - self.counts  # scored tokens of the sequences before
        numbers = torch.arange(rows, device=values.device) * width - before
        shifts = numbers.repeat_interleave(self.counts, output_size=len(values))
        places = shifts + torch.arange(len(values), device=values.device)
        flat = torch.zeros(rows * width, dtype=values.dtype, device=values.device)
        return flat.scatter(0, places, values).view(rows, width)

    def flat(self, values: Sequence[Sequence[float] | np.ndarray]) -> Tensor:
        """Join the values of each sequence's scored tokens to [S] float32.

        Raises:
            ValueError: a sequence does not have one value per scored token.
        """
        counts, given = list(self.on_host), [len(v) for v in values]
        if counts != given:
            raise ValueError(f"scored tokens per sequence: {counts}, values given: {given}")
        joined = np.concatenate([np.asarray(v, np.float32) for v in values])
        return moved([torch.from_numpy(joined)], self.counts.device)[0]

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Divide the values [S] of scored tokens among the sequences."""
        return np.split(values, np.cumsum(self.on_host)[:-1])


TENSORS = ("counts", "input_ids", "position_ids", "sources", "targets", "scored", "read")  # of a SequenceBatch


@dataclass(frozen=True)
class SequenceBatch(ScoredTokens):
    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor  # [R, T] int64
    sources: Tensor  # [U] int64: positions, counted over all rows, whose hidden states predict the targets
    targets: Tensor  # [U] int64: the predicted tokens; a pair (source, target) that sequences share occurs once
    scored: Tensor  # [S] int64: index into sources and targets, in the order of the sequences
    read: Tensor  # int64: the unique positions in sources
    groups: tuple[Group, ...] | None  # None in the padded layout
    segments: Segments | None  # of groups in one row; None where rows are padded
    filled: int  # number of positions that are not padding
    lengths: tuple[int, ...] = field(default=(), kw_only=True)  # tokens of each sequence

    def to(self, device: torch.device) -> SequenceBatch:
        if device == self.counts.device:
            return self
        ours = {name: getattr(self, name) for name in TENSORS}
        of_segments = {} if self.segments is None else self.segments.tensors
        there = moved([*ours.values(), *of_segments.values()], device)
        segments = self.segments and replace(self.segments, **dict(zip(of_segments, there[len(ours) :], strict=True)))
        return replace(self, segments=segments, **dict(zip(ours, there, strict=False)))

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
    sequences: Sequence[TokenSequence],
    pad_id: int,
    row_each: bool = False,
    labels: Sequence[int] | None = None,
    whole: bool = False,
) -> SequenceBatch:
    """Lay out sequences in the shared layout. Sequences of one prompt form a group; equal sequences are stored once.

    Args:
        row_each: use a row per group, padded to the longest; otherwise one row for all groups, without padding.
        labels: one per sequence; sequences with different labels share nothing. By default all may share.
        whole: score every token but the first of each sequence, those of its prompt too, whatever the masks say.
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
    if whole:
        sequences = [
            TokenSequence(s.prompt_ids[:0], i.tolist(), [True] * len(i)) for s, i in zip(sequences, ids, strict=True)
        ]
    return _batch(sequences, ids, inside, input_ids, position_ids, placed, filled, in_one_row=not row_each)


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
    in_one_row: bool = False,
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
    source, target, scored = distinct(np.concatenate(sources), np.concatenate(targets))
    read = source[np.flatnonzero(np.diff(source, prepend=-1))]  # sorted already: the first of each
    tensors = map(torch.from_numpy, (np.array(counts), input_ids, position_ids, source, target, scored, read))
    segments = Segments.of(groups) if groups is not None and in_one_row else None
    of_host = {"on_host": tuple(counts), "lengths": tuple(map(len, ids))}
    return SequenceBatch(*tensors, groups, segments, filled, **of_host)  # type: ignore[call-arg]


def distinct(sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the different pairs (source, target), sorted, and for each pair given the index of its equal.

    A pair is sorted as one integer, which is many times faster. int64 holds it: no position or id reaches 2^31.
    """
    words = int(targets.max(initial=0)) + 1
    keys, scored = np.unique(sources * words + targets, return_inverse=True)
    source, target = np.divmod(keys, words)
    return source, target, scored
