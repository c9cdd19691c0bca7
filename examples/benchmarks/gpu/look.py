"""Part 0: is the card well? The look that every node gets before a run, and the speed of its parts alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from pipeline.cluster.gpus import faults_of, look, product

PRODUCT, COPY = 0.66, 0.8  # shares of the peak and of the bandwidth that plain calls of torch reach
PINNED = {True: 45e9, False: 20e9}  # bytes/s from pinned memory: PCIe of the fifth generation, and before it


def measure(setting: Setting) -> Report:
    """Look at the card, multiply, and copy."""
    answer, card = look(), setting.card
    faults = list(faults_of(answer, "bfloat16")) if setting.on_gpu else []
    side, size = (128, 2**20) if setting.tiny else (8192, 2**32)
    error, teraflops = product(setting.device, side)
    copied = 2 * size / setting.fastest(_copying(setting, size))
    pinned, pageable = (size / setting.fastest(_sending(setting, size, pinned)) for pinned in (True, False))
    clocks = "its clocks and temperature (nvidia-smi -q -d PERFORMANCE), and whether others use it"
    rate = card and PRODUCT * card.bfloat16_tflops
    rows = [
        Row("faults found", len(faults), "", 0, True, f"the sentences: {'; '.join(faults)}"),
        Row(f"product of {side} in bfloat16", teraflops, "TFLOP/s", rate, look=clocks),
        Row("its error against float32", error, "relative", 0.01, True, "another card: this one computes wrongly"),
        Row("copy within the card", copied / 1e12, "TB/s", card and COPY * card.bandwidth / 1e12, look=clocks),
        Row(
            "copy from pinned memory",
            pinned / 1e9 if setting.on_gpu else None,
            "GB/s",
            card and PINNED[answer.capability >= (9, 0)] / 1e9,
            look="the PCIe link (nvidia-smi -q -d PCIE): its generation and width",
        ),
        Row("copy from other memory", pageable / 1e9 if setting.on_gpu else None, "GB/s"),
    ]
    return Report(rows, {"answer": answer._asdict(), "faults": faults})


def _copying(setting: Setting, size: int) -> Callable[[], Any]:
    there = torch.empty(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(there)
    return lambda: target.copy_(there)


def _sending(setting: Setting, size: int, pinned: bool) -> Callable[[], Any]:
    here = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned and setting.on_gpu)
    target = torch.empty(size, dtype=torch.uint8, device=setting.device)
    return lambda: target.copy_(here, non_blocking=True)
