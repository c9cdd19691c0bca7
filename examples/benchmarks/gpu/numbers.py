"""Part 1: are the numbers right? Log-probs in bfloat16 against float64 of the same weights.

Speed means nothing before this part is as it should be.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpo.lm.attention import shared_attention
from dpo.lm.batch import collate_shared
from dpo.lm.head import LinearHeadLogps
from dpo.lm.kernels import choose_kernels
from dpo.lm.logprobs import LogprobModel
from dpo.lm.models import freeze, load_model
from dpo.lm.segments import Segments
from dpo.lm.varlen import installed, takes, varlen_attention
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import BUDGET
from examples.benchmarks.workload import Pair
from pipeline.models.scorer import score_all
from pipeline.worker.plan import plan_step

HEAD_ERROR, BIAS, GAP = 1e-4, 1e-4, 5e-3  # nats a token, at most; rounded logits would have a head err by 1e-2
LOGITS = 8.0  # their standard deviation in a trained model
NO_WORSE = 1.5  # errors of two ways to attend, one over the other


def measure(setting: Setting) -> Report:
    """Compare the head alone, attention alone, and whole models."""
    choose_kernels()
    rows: list[Row] = []
    for name in setting.models:
        rows += [_head(setting, name), *_attention(setting, name), *_model(setting, name)]
    return Report(rows)


@torch.no_grad()
def _head(setting: Setting, name: str) -> Row:
    """The head on hidden states in bfloat16, against the same ones in float64."""
    shape, count = setting.shape(name), 64 if setting.tiny else 2048
    draw = torch.Generator(setting.device).manual_seed(0)
    of: dict[str, Any] = {"device": setting.device, "generator": draw}
    hidden = torch.randn(count, shape.hidden, **of).bfloat16()
    weight = (torch.randn(shape.vocabulary, shape.hidden, **of) * LOGITS / shape.hidden**0.5).bfloat16()
    targets = torch.randint(shape.vocabulary, (count,), **of)
    ours = LinearHeadLogps.apply(hidden, weight, None, targets, False)[0]  # type: ignore[index]
    wide = weight.double()
    exact = [
        (h.double() @ wide.T).log_softmax(-1).gather(-1, t[:, None])[:, 0]
        for h, t in zip(hidden.split(256), targets.split(256), strict=True)
    ]
    error = float((ours - torch.cat(exact)).abs().mean())
    look = "dpo/lm/products.py: whether matmul still hands on its float32 sums (out_dtype) in this torch"
    return Row(f"{name}: error of the head", error, "nats a token", HEAD_ERROR, True, look)


@torch.no_grad()
def _attention(setting: Setting, name: str) -> list[Row]:
    """One call for all segments, and a call for each tail, against a call for each tail in float64."""
    config, draw = setting.models[name], torch.Generator(setting.device).manual_seed(0)
    query, key, value, segments = inputs(setting, config, setting.pairs(name, 8), draw)
    exact = shared_attention(query.double(), key.double(), value.double(), segments.groups)
    scale = exact.square().mean().sqrt()

    def error(found: Tensor) -> float:
        return float((found - exact).square().mean().sqrt() / scale)

    loop = error(shared_attention(query, key, value, segments.groups, masks=segments.masks))
    one = None
    if takes(query, value):
        one = error(varlen_attention(query, key, value, segments, None, installed()))
    look = "dpo/lm/varlen.py: whether this torch's varlen_attn still aligns a window to the lower right"
    return [
        Row(f"{name}: error of attention, a call a tail", loop, "relative"),
        Row(f"{name}: error of attention, one call", one, "relative", NO_WORSE * loop, True, look),
    ]


def inputs(
    setting: Setting, config: dict[str, Any], pairs: list[Pair], draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Segments]:
    """Random queries, keys and values of a layer for some pairs, in bfloat16, and the segments of the pairs."""
    segments = collate_shared([s for pair in pairs for s in pair.sequences()], 0).to(setting.device).segments
    assert segments is not None  # they are in one row
    tokens = int(segments.query_ends[-1])
    channels = config["hidden_size"] // config["num_attention_heads"]
    heads = config["num_attention_heads"], *2 * [config["num_key_value_heads"]]
    of: dict[str, Any] = {"device": setting.device, "generator": draw}
    query, key, value = (torch.randn(1, n, tokens, channels, **of).bfloat16() for n in heads)
    return query, key, value, segments


def _model(setting: Setting, name: str) -> list[Row]:
    """A whole model in bfloat16: against float64, a pair's sides exchanged, and as scorer against as trainer."""
    pairs = setting.pairs(name, 96 if setting.tiny else 256, seed=1)
    model: Any = LogprobModel(freeze(load_model(setting.folder(name), torch.bfloat16))).to(setting.device)
    ours, exchanged = _scores(model, pairs), _scores(model, [Pair(p.prompt, p.rejected, p.chosen) for p in pairs])
    gap = np.abs(np.concatenate(ours) - np.concatenate(_as_trained(setting, model, pairs))).mean()
    exact = _scores(copy.deepcopy(model).double(), pairs)
    error = [a - b for a, b in zip(ours, exact, strict=True)]
    margins = [error[i].sum() - error[i + 1].sum() for i in range(0, len(error), 2)]
    # As the first of its prompt's completions and as the second: the difference of two places in the layout.
    turned = chain(*((exchanged[i + 1], exchanged[i]) for i in range(0, len(ours), 2)))
    first = [(a - b) * (1 if i % 2 == 0 else -1) for i, (a, b) in enumerate(zip(ours, turned, strict=True))]
    bias = abs(float(np.concatenate(first).mean()))
    kernels = "dpo/lm/kernels.py, and the kernels in a trace of part 4: chosen and rejected sides must take one"
    return [
        Row(f"{name}: error of a token", float(np.abs(np.concatenate(error)).mean()), "nats"),
        Row(f"{name}: error of a pair's log-ratio", float(np.sqrt(np.mean(np.square(margins)))), "nats, rms"),
        Row(f"{name}: bias of chosen against rejected", bias, "nats a token", BIAS, True, kernels),
        Row(f"{name}: scorer against trainer", float(gap), "nats a token", GAP, True, kernels),
    ]


def _scores(model: LogprobModel, pairs: list[Pair]) -> list[np.ndarray]:
    """Log-probs as the reference is scored: of each pair's chosen side, then of its rejected one."""
    sequences = [s for pair in pairs for s in pair.sequences()]
    return [values.astype(np.float64) for values in score_all(model, sequences, 0, BUDGET)]


def _as_trained(setting: Setting, model: LogprobModel, pairs: list[Pair]) -> list[np.ndarray]:
    """The same log-probs from micro-batches of training, with gradients."""
    costs = [len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs]
    model.requires_grad_(True).train()
    found: dict[int, np.ndarray] = {}
    for indices in plan_step(costs, 1, BUDGET)[0]:
        sequences = [pairs[i].sequences()[side] for side in (0, 1) for i in indices]
        batch = model.collate(sequences, 0).to(setting.device)
        values = model(batch).logps.detach().double().cpu().numpy()
        places = [2 * i + side for side in (0, 1) for i in indices]
        found |= dict(zip(places, batch.split(values), strict=True))
    freeze(model)
    return [found[place] for place in range(2 * len(pairs))]
