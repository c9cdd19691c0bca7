"""Linear layers under ZeRO-3: DeepSpeed's backward pass, which keeps no gathered weights, and torch's forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.worker.zero import LinearFunctionForZeroStage3

TORCH_LINEAR = torch.nn.functional.linear  # which DeepSpeed puts its own in the place of


def fuse_bias() -> None:
    """Let linear layers compute under ZeRO-3 as they do elsewhere, also by the scorer.

    DeepSpeed's own forward pass rounds the product before it adds the bias: in bfloat16 that is another function.
    """
    LinearFunctionForZeroStage3.forward = staticmethod(_linear)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return TORCH_LINEAR(input, weight, bias)
