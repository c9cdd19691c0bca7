"""Hidden states of scored positions -> log-probs of their targets, without ever holding all logits.

U positions, d channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 64 * 2**20  # of float32 logits that are held at once


def chunk_rows(vocabulary: int) -> int:
    """Positions whose logits are held at once."""
    return max(64, CHUNK_BYTES // (4 * vocabulary))


class Logps(NamedTuple):
    """Log-probs of targets."""

    logps: Tensor  # in at least float32
    agreement: Tensor | None = None  # log of the chance that two draws agree there, without gradient; where asked for


def target_logps(logits: Tensor, targets: Tensor, agreement: bool = False) -> Logps:
    """[U, V] logits of any floating dtype -> [U]; the log-softmax is taken in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = -F.cross_entropy(logits, targets, reduction="none")
    if not agreement:
        return Logps(logps)
    with torch.no_grad():
        return Logps(logps, _agreement(logits, logits.logsumexp(-1)))


def _agreement(logits: Tensor, normalizer: Tensor) -> Tensor:
    """log sum_v p_v^2."""
    return (2 * logits).logsumexp(-1) - 2 * normalizer


class LinearHeadLogps(torch.autograd.Function):
    """A linear head, the log-softmax and the choice of the target, chunk by chunk.

    The backward pass computes the logits again, which costs a third of the head once more and saves U x V numbers.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, agreement: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[U, d], [V, d], [V], [U] -> the two parts of `Logps`."""
        logps, normalizers, agreements = [], [], []
        rows = chunk_rows(weight.shape[0])
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = _logits(h, weight, bias)
            normalizer = logits.logsumexp(-1)
            logps.append(logits.gather(-1, t[:, None])[:, 0] - normalizer)
            normalizers.append(normalizer)
            if agreement:
                agreements.append(_agreement(logits, normalizer))
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers))
        agreed = torch.cat(agreements) if agreement else None
        if agreed is not None:
            ctx.mark_non_differentiable(agreed)
        return torch.cat(logps), agreed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        rows = chunk_rows(weight.shape[0])
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=gradient.dtype) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=gradient.dtype) if bias is not None else None
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            h, t = hidden[at], targets[at]
            # d log p_t / d logits = onehot(t) - p
            of_logits = (_logits(h, weight, bias) - normalizers[at, None]).exp_().neg_()
            of_logits.scatter_add_(-1, t[:, None], torch.ones_like(of_logits[:, :1]))
            of_logits.mul_(gradient[at, None])
            rounded = of_logits.to(hidden.dtype)
            torch.matmul(rounded, weight, out=of_hidden[at])
            if of_weight is not None:
                of_weight += rounded.t() @ h
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            of_bias if of_bias is None or bias is None else of_bias.to(bias.dtype),
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class ScoringLinear(nn.Linear):
    """A linear head that, called with targets, answers with their log-probs.

    It is the head itself that is called, so that what partitions its weight (ZeRO-3) gathers it for the call.
    """

    def forward(self, input: Tensor, targets: Tensor | None = None, agreement: bool = False) -> Any:
        if targets is None:
            return super().forward(input)
        return Logps(*LinearHeadLogps.apply(input, self.weight, self.bias, targets, agreement))  # type: ignore[misc]


def scoring_head_(head: Any) -> Any:
    """Let a plain linear head answer with log-probs, in place; any other kind of head stays what it is."""
    if type(head) is nn.Linear:
        head.__class__ = ScoringLinear
    return head
