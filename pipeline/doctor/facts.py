"""The facts that the doctor reports in addition to its findings: about the data, the tokens and the job."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import numpy as np

from dpo.lm.model_config import read_config
from pipeline.config import Config, HuggingFacePolicy
from pipeline.doctor.findings import Facts
from pipeline.doctor.numbers import Numbers, Work
from pipeline.models.fits import check_fit
from pipeline.models.sizing import GIB, MicroBatch, Shape, estimate, forward_flops, from_config
from pipeline.models.start import random_config
from pipeline.stages.preflight import Inputs

GPU_TFLOPS = 150.0  # assumed TFLOP/s of a GPU in training: about an A100; an H100 reaches more


def data_facts(counts: dict[str, Any], train: Numbers, held_out: Numbers) -> Facts:
    prompts, groups = len(np.unique(train.prompt_hash)), max(1, len(np.unique(train.prompt_hash)))
    facts = {
        "pairs read": f"{counts['read']:,}",
        "rejected": f"{counts['rejected']:,}"
        + "".join(f", {number:,} {kind}" for kind, number in counts["reasons"].items()),
        "training pairs": f"{train.pairs:,} over {prompts:,} prompts ({train.pairs / groups:.1f} per prompt)",
        "held-out pairs": f"{held_out.pairs:,}" if held_out.pairs else "none (data.eval)",
    }
    for side in ("prompt", "chosen", "rejected"):
        found = getattr(train, side)
        if len(found):
            middle, most = np.quantile(found, [0.5, 0.9])
            facts[f"tokens of {side}"] = f"median {middle:,.0f}, 90 % up to {most:,.0f}, longest {found.max():,}"
    return facts


def work_facts(work: Work, train: Numbers) -> Facts:
    if not train.pairs:
        return {}
    return {
        "tokens per epoch": f"{work.logical:,}, with the prompt counted for each answer",
        "prompts": f"{2 * int(train.prompt.sum()) / work.logical:.1%} of these tokens",
        "padded": f"{work.padded:,} if 8 pairs are padded to the longest: {work.padded / work.logical - 1:.1%} more",
        "prompt once per pair": f"{work.shared:,}: {work.share(work.shared):.1%} saved (train.share_prompts)",
        "each prompt once": f"{work.grouped:,}: {work.share(work.grouped):.1%} saved (grouped; scoring does this)",
    }


def job_facts(config: Config, inputs: Inputs, train: Numbers) -> Facts:
    """Estimate steps, memory and time of the configured run.

    Raises:
        InputError: the model cannot be read, or it does not fit the tokenizer or the data.
    """
    policy, tokens, max_length = config.policy, len(inputs.tokenizer), config.data.max_length
    steps = -(-train.pairs // config.train.batch_pairs)
    facts = {"optimizer steps": f"{steps * config.train.epochs:,} of up to {config.train.batch_pairs} pairs"}
    if inputs.policy is not None:
        model = read_config(inputs.policy)
        check_fit(model, str(inputs.policy), tokens, max_length)
    else:
        model = random_config(policy, tokens, max_length)
        if isinstance(policy, HuggingFacePolicy):
            check_fit(model, "policy.config", tokens, max_length)
    try:
        shape = from_config(model)
    except KeyError as error:
        return {**facts, "memory and time": f"not estimated: the model's config has no field {error}"}
    return facts | _estimates(config, shape, train) if train.pairs else facts


def _estimates(config: Config, shape: Shape, train: Numbers) -> Facts:
    workers, gpus = config.cluster.most_workers, config.cluster.gpus_per_worker
    pairs = train.prompt + train.chosen + train.rejected
    tokens = max(min(config.train.micro_batch_tokens, int(pairs.sum())), int(pairs.max()))  # no pair is divided
    memory = estimate(
        shape, config.deepspeed.stage, workers, MicroBatch.of(tokens, train.prompt, train.chosen, train.rejected),
        config.train.activation_checkpointing, config.train.dtype == "float32",
    )  # fmt: skip
    prompt, answer = float(train.prompt.mean()), float((train.chosen.mean() + train.rejected.mean()) / 2)
    forward = forward_flops(shape, prompt, answer) * train.pairs
    flops = forward * (3 * config.train.epochs + 1)  # forward and backward per epoch, and the reference once
    if gpus:
        rate, what = GPU_TFLOPS * workers, f"{workers} GPU(s) at {GPU_TFLOPS:g} TFLOP/s each"
    else:
        rate = _tflops_here() * workers / (os.cpu_count() or 1) * config.cluster.cpus_per_worker
        what = f"{workers} worker(s) on this CPU, {rate * 1000:.0f} GFLOP/s as measured"
    device = "GPU" if gpus else "worker"
    return {
        "model": f"{shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers, hidden size {shape.hidden}",
        f"memory per {device}": f"about {memory.total / GIB:.1f} GiB: states {memory.states / GIB:.1f}, activations "
        f"{memory.activations / GIB:.1f}, logits {memory.logits / GIB:.1f} (ZeRO {config.deepspeed.stage}, "
        f"{config.train.dtype}); keep 20 % free",
        "time": f"roughly {_clock(flops / (rate * 1e12))}: {flops / 1e15:,.3g} PFLOP on {what}",
    }


@cache
def _tflops_here() -> float:
    """Measure the TFLOP/s of a float32 matrix product on all threads of this machine, once per process."""
    a = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    np.matmul(a, a)
    count, began = 0, time.monotonic()
    while time.monotonic() - began < 0.5:
        np.matmul(a, a)
        count += 1
    return count * 2 * 768**3 / (time.monotonic() - began) / 1e12


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
