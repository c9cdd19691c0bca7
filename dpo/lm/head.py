"""Hidden states of scored positions -> log-probs of their targets, in chunks, so that logits need little memory.

U positions, d channels, V tokens in the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpo.lm.products import add_weight_gradient_, as_factor, hidden_gradient_, logits_of

CHUNK_BYTES = 64 * 2**20  # size of the float32 logits in one chunk on a CPU: about its cache
GPU_CHUNK_BYTES = 2 * 2**30  # the same on a GPU, where a chunk must outweigh the reading of the head's whole weight
LOGIT_BYTES = 10  # of a chunk, a logit: itself and its gradient in float32, and that in bfloat16


def chunk_rows(vocabulary: int, kind: str, free: int | None = None) -> int:
    """Return the number of positions in one chunk; on a GPU 2,048 to 4,096, but fewer where memory is short.

    Args:
        kind: of device, "cpu" or "cuda".
        free: bytes that are left on the GPU, of which a chunk takes half at most; None where that is not known.
    """
    if kind == "cpu":
        return max(64, CHUNK_BYTES // (4 * vocabulary))
    rows = min(4096, max(2048, GPU_CHUNK_BYTES // (4 * vocabulary) // 128 * 128))
    while free is not None and rows > 64 and rows * vocabulary * LOGIT_BYTES > free / 2:
        rows //= 2
    return rows


def _chunk_rows(weight: Tensor) -> int:
    device = weight.device
    if device.type != "cuda":
        return chunk_rows(weight.shape[0], "cpu")
    # What torch has taken from the card and not given to a tensor is free too.
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return chunk_rows(weight.shape[0], "cuda", torch.cuda.mem_get_info(device)[0] + held)


class Logps(NamedTuple):
    """Log-probs of targets."""

    logps: Tensor  # in at least float32
    agreement: Tensor | None = None  # on request: log of the probability that two draws agree, without gradient
    entropy: Tensor | None = None  # on request: of the next token, in nats, without gradient


def target_logps(logits: Tensor, targets: Tensor, agreement: bool = False, entropy: bool = False) -> Logps:
    """Compute log-probs [U] from logits [U, V] of any floating dtype, with the log-softmax in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = -F.cross_entropy(logits, targets, reduction="none")
    if not agreement and not entropy:
        return Logps(logps)
    with torch.no_grad():
        normalizer = logits.logsumexp(-1)
        agreed = _agreement(logits, normalizer) if agreement else None
        return Logps(logps, agreed, entropy_of(logits, normalizer) if entropy else None)


def _agreement(logits: Tensor, normalizer: Tensor) -> Tensor:
    """Return log sum_v p_v^2."""
    return (2 * logits).logsumexp(-1) - 2 * normalizer


def entropy_of(logits: Tensor, normalizer: Tensor) -> Tensor:
    """Compute - sum_v p_v log p_v from logits [..., V] and their logsumexp [...]; a token that cannot be adds 0."""
    logps = logits - normalizer[..., None]
    return -(logps.exp() * logps.nan_to_num_(neginf=0.0)).sum(-1)


class LinearHeadLogps(torch.autograd.Function):
    """A linear head, the log-softmax and the selection of the target, chunk by chunk.

    The backward pass computes the logits again. That adds a third to the cost of the head and saves U x V numbers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        agreement: bool,
        scale: float = 1.0,
        rows: int | None = None,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute the fields of `Logps` from hidden [U, d], weight [V, d], bias [V] and targets [U].

        Args:
            scale: the logits are those of weight and bias, times this.
            rows: positions in one chunk; None: as many as suit the device.
        """
        ctx.scale, ctx.rows = scale, rows
        logps, normalizers, agreements, entropies = [], [], [], []
        rows = rows or _chunk_rows(weight)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = _scaled(h, weight, bias, scale)
            normalizer = logits.logsumexp(-1)
            logps.append(logits.gather(-1, t[:, None])[:, 0] - normalizer)
            normalizers.append(normalizer)
            if agreement:
                agreements.append(_agreement(logits, normalizer))
            if entropy:
                entropies.append(entropy_of(logits, normalizer))
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers))
        agreed, spread = (torch.cat(parts) if parts else None for parts in (agreements, entropies))
        ctx.mark_non_differentiable(*(values for values in (agreed, spread) if values is not None))
        return torch.cat(logps), agreed, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        rows = ctx.rows or _chunk_rows(weight)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=gradient.dtype) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=gradient.dtype) if ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            h, t = hidden[at], targets[at]
            # d log p_t / d logits = onehot(t) - p; on a GPU each pass over the logits counts, so the sign goes with g
            of_logits = _scaled(h, weight, bias, ctx.scale).sub_(normalizers[at, None]).exp_()
            of_logits.scatter_add_(-1, t[:, None], torch.full_like(of_logits[:, :1], -1.0))
            of_logits.mul_(-gradient[at, None] if ctx.scale == 1 else -ctx.scale * gradient[at, None])
            factor = as_factor(of_logits, weight)
            hidden_gradient_(of_hidden[at], factor, weight)
            if of_weight is not None:
                add_weight_gradient_(of_weight, factor, h)
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            of_bias if of_bias is None or bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _scaled(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = logits_of(hidden, weight, bias)
    return logits if scale == 1 else logits.mul_(scale)


class ScoringLinear(nn.Linear):
    """A linear head that returns log-probs if it is called with targets.

    The head module itself is called, so that ZeRO-3, which partitions its weight, gathers the weight for the call.
    """

    def forward(
        self,
        input: Tensor,
        targets: Tensor | None = None,
        agreement: bool = False,
        entropy: bool = False,
        scale: float = 1.0,
    ) -> Any:
        if targets is None:
            return super().forward(input)
        input = input.to(self.weight.dtype)  # some models hand on a residual in float32, and cast it before their head
        found: Any = LinearHeadLogps.apply(input, self.weight, self.bias, targets, agreement, scale, None, entropy)
        return Logps(*found)


def scoring_head_(head: Any) -> Any:
    """Turn a plain linear head into a ScoringLinear, in place. Any other kind of head stays unchanged."""
    if type(head) is nn.Linear:
        head.__class__ = ScoringLinear
    return head
