"""The facts that the doctor reports in addition to its findings: about the data, the tokens and the job."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import numpy as np

from dpo.lm.flops import forward_flops, shared_work, training_flops
from dpo.lm.model_config import Shape, read_config
from pipeline.cluster.connect import joined
from pipeline.config import Config, HuggingFacePolicy
from pipeline.doctor.findings import Facts, Finding, graded
from pipeline.doctor.numbers import Numbers, Work
from pipeline.models.cards import CARDS, Card
from pipeline.models.fits import check_fit
from pipeline.models.room import FULL, Training, advised_zero, frozen_under, memory_here
from pipeline.models.sizing import GIB
from pipeline.models.start import random_config
from pipeline.stages.preflight import Inputs

ADVISED = {
    1: "1, which sends the least between GPUs",
    2: "2, with deepspeed.overlap_comm = true and deepspeed.reduce_bucket_size = 100000000",
    3: "3, which sends the most: no lower one fits",
}
REACHED = 0.4  # assumed share of a card's peak speed that a run reaches


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


def job_facts(config: Config, inputs: Inputs, train: Numbers, card: Card | None) -> tuple[Facts, list[Finding]]:
    """Estimate steps, memory and time of the configured run; a finding if the memory is too small.

    Args:
        card: the model of GPU that the run will have; None if it is unknown.

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
        shape = Shape.of(model)
    except KeyError as error:
        return {**facts, "memory and time": f"not estimated: the model's config has no field {error}"}, []
    if not train.pairs:
        return facts, []
    training = Training.of(config, shape, train.prompt, train.chosen, train.rejected)
    if training.frozen is not None:
        facts["adapter"] = f"{training.frozen.trained / 1e6:,.2f} M parameters are trained"
    size = f"{shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers, hidden size {shape.hidden}"
    room, findings = _room(config, training, card)
    return {**facts, "model": size, **room, "time": _time(config, shape, train, card)}, findings


def _room(config: Config, training: Training, card: Card | None) -> tuple[Facts, list[Finding]]:
    """Compare the memory of a worker with that of its card, or its share of this machine's."""
    memory, what = training.memory, f"ZeRO {config.deepspeed.stage}, {config.train.dtype}"
    if training.gpu:
        holder, where = "memory per GPU", None if card is None else str(card)
        there = None if card is None else card.memory
    else:
        holder, where = "memory per worker", "this machine's, divided among the workers"
        there = memory_here(config.cluster.most_workers) if joined(config) is None else None
    if there is None:
        hint = "; --card NAME compares it with a card" if training.gpu else ""
        return {holder: f"about {memory} ({what}){hint}"}, []
    share = memory.total / there
    facts = {holder: f"about {memory} ({what}), {share:.0%} of {there / GIB:.1f} GiB: {where}"}
    if training.gpu:
        facts["advised ZeRO stage"] = ADVISED[advised_zero(training, there).stage]
    if share <= FULL:
        return facts, []
    title = f"the estimated memory is {share:.0%} of what there is"
    detail = f"{holder}: about {memory}. There are {there / GIB:.1f} GiB: {where}. Above {FULL:.0%} a run may fail."
    return facts, [Finding("memory", graded(share, FULL, 1.0), title, detail, training.advice(there))]


def _time(config: Config, shape: Shape, train: Numbers, card: Card | None) -> str:
    workers = config.cluster.most_workers
    prompt, answer = float(train.prompt.mean()), float((train.chosen.mean() + train.rejected.mean()) / 2)
    pair = shared_work(prompt, (answer, answer))
    forward = forward_flops(shape, pair)
    frozen = frozen_under(config, shape)
    each = training_flops(shape, pair, None if frozen is None else frozen.trained) + (
        forward if config.train.activation_checkpointing else 0
    )
    flops = (each * config.train.epochs + forward) * train.pairs  # and the reference once
    work = f"{flops / 1e15:,.3g} PFLOP"
    if not config.cluster.gpus_per_worker:
        rate = _tflops_here() * workers / (os.cpu_count() or 1) * config.cluster.cpus_per_worker
        what = f"{workers} worker(s) on this CPU, {rate * 1000:.0f} GFLOP/s as measured"
        return f"roughly {_clock(flops / (rate * 1e12))}: {work} on {what}"
    guesses = []
    for each in [card] if card is not None else [CARDS["A100-80GB"], CARDS["H100"]]:
        rate = REACHED * each.tflops(config.train.dtype == "float32")
        guesses.append(f"{_clock(flops / (rate * workers * 1e12))} on {workers} {each.name} at {rate:.0f} TFLOP/s each")
    return f"roughly {', or '.join(guesses)} ({REACHED:.0%} of the peak): {work}"


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
