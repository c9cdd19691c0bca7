"""The matrix products of a linear head, in at least float32 whatever the dtype of its weight.

A product of bfloat16 matrices that is rounded to bfloat16 has logits in steps of an eighth at 16. A log-prob keeps that
error, however its log-softmax is taken. U positions, d channels, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE_OUTPUT = ("cuda",)  # kinds of device whose matmul hands on its float32 sums; others refuse `out_dtype`
BLOCK_NUMBERS = 2**24  # of the weight, converted to float32 at once where matmul has no wide output: 64 MiB


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether logits of this dtype would be rounded: bfloat16 or float16."""
    return dtype in (torch.bfloat16, torch.float16)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute logits [U, V] in at least float32 from hidden [U, d], weight [V, d], bias [V]."""
    if not is_narrow(hidden.dtype):
        return F.linear(hidden, weight, bias)
    if hidden.device.type in WIDE_OUTPUT:
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        logits = torch.empty(len(hidden), len(weight), dtype=torch.float32, device=hidden.device)
        wide = hidden.float()
        for rows, block in _blocks(weight):
            torch.mm(wide, block.t(), out=logits[:, rows])
    return logits if bias is None else logits.add_(bias)


def as_factor(of_logits: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of logits as the next two functions take it: in the weight's dtype where sums are wide."""
    apart = is_narrow(weight.dtype) and weight.device.type not in WIDE_OUTPUT
    return of_logits if apart else of_logits.to(weight.dtype)


def hidden_gradient_(out: Tensor, of_logits: Tensor, weight: Tensor) -> None:
    """Write the gradient of hidden states into `out`, [U, d] in their own dtype: it is summed wide and rounded once."""
    if of_logits.dtype == weight.dtype:
        torch.matmul(of_logits, weight, out=out)
        return
    total = torch.zeros(out.shape, dtype=of_logits.dtype, device=out.device)
    for rows, block in _blocks(weight):
        total.addmm_(of_logits[:, rows], block)
    out.copy_(total)


def add_weight_gradient_(total: Tensor, of_logits: Tensor, hidden: Tensor) -> None:
    """Add the gradient of the weight to `total`, [V, d] in at least float32; hidden is [U, d]."""
    if of_logits.dtype != hidden.dtype:
        total.addmm_(of_logits.t(), hidden.float())
    elif is_narrow(hidden.dtype):
        torch.addmm(total, of_logits.t(), hidden, out_dtype=torch.float32, out=total)  # without another [V, d] a chunk
    else:
        total += of_logits.t() @ hidden


def _blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the weight in float32, some tokens of the vocabulary at a time: a whole copy might not fit in memory."""
    rows = max(1, BLOCK_NUMBERS // weight.shape[1])
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows), weight[start : start + rows].float()
