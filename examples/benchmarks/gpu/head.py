"""Part 3: the head, forward and backward, by the size of its chunks, with wide sums and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dpo.lm import products
from dpo.lm.head import LinearHeadLogps, chunk_rows
from dpo.lm.kernels import choose_kernels
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import HEAD_MARGIN, head_seconds

ROWS = 8192  # scored tokens
CHUNKS = (64 << 20, 256 << 20, 1 << 30, 2 << 30)  # bytes of float32 logits


def measure(setting: Setting) -> Report:
    """Time the head at every size of a chunk; the target is that of a chunk as a GPU takes it."""
    choose_kernels()
    rows = []
    for name in setting.models:
        vocabulary = setting.shape(name).vocabulary
        for size in CHUNKS:
            chunk = max(64, size // (4 * vocabulary))
            what = f"{name}: chunks of {size >> 20} MiB"
            rows.append(Row(what, 1e3 * _seconds(setting, name, chunk), "ms"))
        own = chunk_rows(vocabulary, setting.device.type)
        rows.append(_as_it_is(setting, name, own))
        with _rounded_sums():
            rows.append(Row(f"{name}: without wide sums", 1e3 * _seconds(setting, name, own), "ms"))
    return Report(rows)


def _as_it_is(setting: Setting, name: str, own: int) -> Row:
    shape, card = setting.shape(name), setting.card
    target = card and 1e3 * HEAD_MARGIN * head_seconds(shape, ROWS, own * 4 * shape.vocabulary, card)
    look = "the rows above: if larger chunks are faster, dpo/lm/head.py::GPU_CHUNK_BYTES"
    return Row(f"{name}: as it is, {own} rows a chunk", 1e3 * _seconds(setting, name, own), "ms", target, True, look)


def _seconds(setting: Setting, name: str, chunk: int) -> float:
    shape, count = setting.shape(name), 128 if setting.tiny else ROWS
    draw = torch.Generator(setting.device).manual_seed(0)
    sizes = (count, shape.hidden), (shape.vocabulary, shape.hidden)
    hidden, weight = (torch.randn(*size, device=setting.device, generator=draw).bfloat16() for size in sizes)
    targets = torch.randint(shape.vocabulary, (count,), device=setting.device, generator=draw)
    hidden.requires_grad_()
    weight.requires_grad_()

    def both() -> None:
        hidden.grad = weight.grad = None
        LinearHeadLogps.apply(hidden, weight, None, targets, False, 1.0, chunk)[0].sum().backward()  # type: ignore[index]

    return setting.fastest(both, repeats=2 if setting.tiny else 5)


@contextmanager
def _rounded_sums() -> Iterator[None]:
    """As on a device whose matmul cannot hand on its float32 sums."""
    before = products.WIDE_OUTPUT
    products.WIDE_OUTPUT = ()
    try:
        yield
    finally:
        products.WIDE_OUTPUT = before
