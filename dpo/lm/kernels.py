"""Which of a GPU's kernels torch takes, for the whole process."""

from __future__ import annotations

import os

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def choose_kernels(deterministic: bool = False) -> None:
    """Choose kernels whose numbers do not depend on the shape of a batch, before the first of them runs.

    - Sums of a split matrix product are not rounded to bfloat16 on the way. Whether a product is split depends on its
      shape, so on what else is in the micro-batch.
    - cuDNN's attention is off: it builds a plan of about a second for every new pair of lengths, and lengths are new
      all the time.

    Args:
        deterministic: also sum gradients in one fixed order. Two runs are then equal bit for bit on GPUs too, and
            slower.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        os.environ[CUBLAS] = ":4096:8"  # read by cuBLAS when CUDA is first used
    torch.use_deterministic_algorithms(deterministic)
