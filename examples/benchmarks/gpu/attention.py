"""Part 2: attention of one layer on real lengths, in one call and in a call for each tail, batch after batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from dpo.lm.attention import shared_attention
from dpo.lm.kernels import choose_kernels
from dpo.lm.segments import Segments
from dpo.lm.varlen import installed, takes, varlen_attention
from examples.benchmarks.gpu.lengths import SETS
from examples.benchmarks.gpu.numbers import inputs
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import BUDGET, work_of
from examples.benchmarks.workload import Pair

LONG = 1024  # tokens of a pair whose attention is worth a rate
ONE_CALL = 0.3  # share of the peak, forward
NEW, GROWTH = 3.0, 1.5  # times: the first call with new lengths, and late batches by their work, at most
REPEATS = 10  # calls with the same lengths
PATIENCE = 60.0  # seconds for a way that plans anew for every shape
Attend = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


def measure(setting: Setting) -> Report:
    """Time all ways on the same batches."""
    choose_kernels()
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for name in setting.models:
        batches = _batches(setting, name)
        for way, attend, cudnn in WAYS:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            timed = _timed(setting, name, batches, attend)
            each = [one._asdict() for one in timed]
            details[f"{name}, {way}"] = {"batches": each, "kernels": _chosen(setting, name)}
            rows += _rows(setting, f"{name}: {way}", timed, ours=attend is _one_call)
    choose_kernels()
    return Report(rows, details)


class Timed(NamedTuple):
    """One batch."""

    flops: float
    first: float  # seconds of the first call with its lengths
    later: float  # of each further one


def _rows(setting: Setting, what: str, timed: list[Timed], ours: bool) -> list[Row]:
    """The rate, and what new lengths cost."""
    if not timed:
        return [Row(what, None, "TFLOP/s")]
    rate = statistics.median(one.flops / one.later for one in timed) / 1e12
    warm = timed[1:] or timed  # the first batch also loads the kernels
    new = statistics.median(one.first / one.later for one in warm)
    early, late = (statistics.median(one.first / one.flops for one in some) for some in (warm[:10], warm[-10:]))
    target = setting.card and ONE_CALL * setting.card.bfloat16_tflops if ours else None
    judged = ours and setting.on_gpu
    plans = "whether cuDNN's attention is off (dpo/lm/kernels.py): it plans anew for every pair of lengths"
    return [
        Row(f"{what}, forward", rate, "TFLOP/s", target, look="a trace of part 4"),
        Row(f"{what}, first call with new lengths over later ones", new, "times", NEW if judged else None, True, plans),
        Row(f"{what}, late batches over early ones", late / early, "times", GROWTH if judged else None, True, plans),
        Row(f"{what}, very first call", timed[0].first, "s"),
    ]


def _one_call(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    return varlen_attention(query, key, value, segments, None, installed())


def _call_a_tail(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    return shared_attention(query, key, value, segments.groups, masks=segments.masks)


WAYS: tuple[tuple[str, Attend, bool], ...] = (
    ("one call", _one_call, False),
    ("a call a tail", _call_a_tail, False),
    ("a call a tail with cuDNN", _call_a_tail, True),
)


def _batches(setting: Setting, name: str) -> list[list[Pair]]:
    """Batches of long pairs up to the budget of a micro-batch, each of other lengths."""
    count, budget, least = (4, 64, 16) if setting.tiny else (setting.fewer(100), BUDGET, LONG)
    long = setting if setting.tiny else setting._replace(quantiles=SETS["Capybara"])
    batches: list[list[Pair]] = [[]]
    used = 0
    for pair in long.pairs(name, 20 * count, seed=2):
        tokens = len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        if tokens < least:
            continue
        if batches[-1] and used + tokens > budget:
            batches.append([])
            used = 0
        batches[-1].append(pair)
        used += tokens
    return batches[:count]


@torch.no_grad()
def _timed(setting: Setting, name: str, batches: list[list[Pair]], attend: Attend) -> list[Timed]:
    """Every batch by itself; none where the kernel does not run on this device."""
    config, shape = setting.models[name], setting.shape(name)
    draw = torch.Generator(setting.device).manual_seed(0)
    timed: list[Timed] = []
    end = time.monotonic() + PATIENCE
    for pairs in batches:
        query, key, value, segments = inputs(setting, config, pairs, draw)
        if attend is _one_call and not takes(query, value):
            return []
        _ = segments.masks  # made once for all layers
        call = partial(attend, query, key, value, segments)
        first = setting.seconds(call)
        later = setting.seconds(lambda call=call: [call() for _ in range(REPEATS)]) / REPEATS
        timed.append(Timed(2 * shape.query * work_of(pairs).attention, first, later))
        if time.monotonic() > end:
            break
    return timed


def _chosen(setting: Setting, name: str) -> dict[str, str]:
    """The kernel that torch takes for a causal call of grouped heads, by dtype."""
    config, draw = setting.models[name], torch.Generator(setting.device).manual_seed(0)
    query, key, value, _ = inputs(setting, config, setting.pairs(name, 1), draw)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (part.to(dtype) for part in (query, key, value))
        found[str(dtype)] = SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True, enable_gqa=True)).name
    return found
