"""Logits -> log-probs of completions. Shift and mask live here and only here.

N sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def token_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-prob of every scored token, zero elsewhere.

    The token at t+1 is predicted by the logits at t, and the mask follows that *target*.

    Args:
        logits: [N, T, V], any floating dtype; the log-softmax is taken in at least float32.
        input_ids: [N, T] integers.
        completion_mask: [N, T] bool, true where the token itself is scored. A token at position 0 has no prediction.

    Returns:
        [N, T-1]; entry t belongs to the token at t+1.
    """
    target_mask = completion_mask[:, 1:]
    rows = logits[:, :-1][target_mask]  # [S, V], only what is scored
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scored = -F.cross_entropy(rows, input_ids[:, 1:][target_mask], reduction="none")
    return torch.zeros(target_mask.shape, dtype=rows.dtype, device=rows.device).masked_scatter(target_mask, scored)


def sequence_logps(logps: Tensor) -> Tensor:
    """[N, T-1] -> [N], summed in float64: a sum of hundreds of nats must still show a difference of 1e-6."""
    return logps.sum(-1, dtype=torch.float64)


class LogprobModel(nn.Module):
    """A causal language model that answers with log-probs of completions instead of logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
        """[N, T] ids and mask -> [N, T-1] log-probs (see `token_logps`)."""
        return token_logps(self.model(input_ids), input_ids, completion_mask)
