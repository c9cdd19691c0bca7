"""Token ids -> tensors: what is where in a batch is said here and nowhere else.

N sequences, B pairs, T tokens of the longest sequence. This is the unshared layout: every sequence repeats its
prompt, rows are padded on the right. A causal model never looks right, so padding needs no attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpo.pairs import TokenSequence


@dataclass(frozen=True)
class SequenceBatch:
    input_ids: Tensor  # [N, T] int64, padded on the right
    completion_mask: Tensor  # [N, T] bool, true where the token itself is scored

    def to(self, device: torch.device) -> SequenceBatch:
        return type(self)(self.input_ids.to(device), self.completion_mask.to(device))

    @property
    def tokens(self) -> int:
        """Positions that the model computes, padding included."""
        return self.input_ids.numel()


class PairBatch(SequenceBatch):
    """B pairs as 2B sequences: the chosen ones first, then the rejected."""

    @staticmethod
    def split(values: Tensor) -> tuple[Tensor, Tensor]:
        """[2B, ...] -> chosen [B, ...], rejected [B, ...]."""
        chosen, rejected = values.chunk(2)
        return chosen, rejected


def collate(sequences: Sequence[TokenSequence], pad_id: int) -> SequenceBatch:
    """Pad sequences to the longest one."""
    length = max(len(s.prompt_ids) + len(s.completion_ids) for s in sequences)
    input_ids = np.full((len(sequences), length), pad_id, np.int64)
    completion_mask = np.zeros((len(sequences), length), bool)
    for row, s in enumerate(sequences):
        start, end = len(s.prompt_ids), len(s.prompt_ids) + len(s.completion_ids)
        input_ids[row, :start] = s.prompt_ids
        input_ids[row, start:end] = s.completion_ids
        completion_mask[row, start:end] = s.mask
    return SequenceBatch(torch.from_numpy(input_ids), torch.from_numpy(completion_mask))


def collate_pairs(chosen: Sequence[TokenSequence], rejected: Sequence[TokenSequence], pad_id: int) -> PairBatch:
    """Pad pairs, given as their two sides in the same order."""
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen sides and {len(rejected)} rejected ones are not pairs")
    both = collate([*chosen, *rejected], pad_id)
    return PairBatch(both.input_ids, both.completion_mask)


def scatter_scored(values: Sequence[Sequence[float] | np.ndarray], completion_mask: Tensor) -> Tensor:
    """Per-token values of each sequence's scored tokens -> [N, T-1], laid out as `logprobs.token_logps` does its own.

    Raises:
        ValueError: a sequence has another number of values than of scored tokens.
    """
    target_mask = completion_mask[:, 1:]
    counts = target_mask.sum(1).tolist()
    if counts != [len(v) for v in values]:
        raise ValueError(f"scored tokens a sequence: {counts}, values given: {[len(v) for v in values]}")
    flat = torch.from_numpy(np.concatenate([np.asarray(v, np.float32) for v in values]))
    return torch.zeros(target_mask.shape, dtype=torch.float32).masked_scatter(target_mask, flat)
