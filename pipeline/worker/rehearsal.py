"""A trial of the run's largest micro-batch before the first step, so that an out-of-memory error appears at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from dpo.lm.logprobs import Way
from dpo.lm.sequences import TokenSequence
from dpo.terms import needs_agreement
from pipeline.worker.engine import Engine
from pipeline.worker.job import Job
from pipeline.worker.logs import say
from pipeline.worker.objectives import SIDES, Costs, objective_of
from pipeline.worker.plan import plan_step
from pipeline.worker.verdict import out_of_memory_as


def rehearse(engine: Engine, job: Job) -> None:
    """Run forward and backward on random tokens of the size of the largest planned micro-batch, with weight 0.

    Twice, since the gradients of one micro-batch lie beside the activations of the next. Memory for Adam's moments,
    which appear with the first update, is held meanwhile.

    Raises:
        OutOfMemory: the micro-batch does not fit into memory.
    """
    objective, steps = objective_of(job), _steps(job.step_lengths)
    lengths = largest_micro_batch(
        steps, objective.sides, engine.way, engine.row_each, dist.get_world_size(), job.micro_batch_tokens
    )
    if not len(lengths):
        return
    batch = engine.collate(_made_up(lengths, objective.sides, engine.vocabulary), len(lengths))
    with out_of_memory_as(partial(_sentence, len(lengths), batch.tokens, engine.device, job)):
        held = engine.room_for_update()
        for number in range(2):
            say(job.logs, f"trying the largest micro-batch, {len(lengths)} pairs: {number + 1} of 2")
            engine.backward(engine.logps(batch, needs_agreement(job.mixture)).logps.sum() * 0.0, last=False)
        del held


def _sentence(pairs: int, tokens: int, device: torch.device, job: Job) -> str:
    memory = f"the memory of {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "memory"
    return (
        f"The largest micro-batch, {pairs} pairs with {tokens:,} tokens, does not fit into {memory}. "
        f"{how_to_need_less(job)}"
    )


def how_to_need_less(job: Job) -> str:
    """The keys that lower the memory of a step."""
    return (
        f"Lower micro_batch_tokens (it is {job.micro_batch_tokens:,}) of [train], or of [sft] in that stage, or set "
        "train.activation_checkpointing = true, and run again. If the micro-batch is one long pair, lower "
        "data.max_length or raise deepspeed.stage, with another run.name."
    )


def largest_micro_batch(
    steps: Iterable[np.ndarray], sides: Sequence[str], way: Way, row_each: bool, world_size: int, budget: int
) -> np.ndarray:
    """Find the micro-batch with the most tokens, padding included, among all steps and ranks.

    Args:
        steps: for each step, [pairs, 3]: tokens of prompt, chosen and rejected.

    Returns:
        The lengths of its pairs, [pairs, 3]; empty if there are no steps.
    """
    largest, found = -1, np.empty((0, 3), np.int64)
    for lengths in steps:
        cost = Costs(lengths[:, 0], [lengths[:, 1 + SIDES.index(side)] for side in sides], way, row_each)
        for of_rank in plan_step(cost.tokens.tolist(), world_size, budget, cost.padded_rows):
            for indices in of_rank:
                tokens = cost.of(indices)
                if tokens > largest:
                    largest, found = tokens, lengths[indices]
    return found


def _steps(paths: list[str]) -> Iterator[np.ndarray]:
    """Yield the lengths of each step's rows."""
    for path in paths:
        with np.load(path) as window:
            yield from np.split(window["lengths"].astype(np.int64), window["steps"][1:])


def _made_up(lengths: np.ndarray, sides: Sequence[str], vocabulary: int) -> list[TokenSequence]:
    """Make sequences of given lengths. Ids are random, so that no two pairs share a prefix."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, vocabulary, n).tolist() for n in lengths[:, 0]]
    return [
        TokenSequence(prompt, draw.integers(0, vocabulary, n).tolist(), [True] * int(n))
        for side in sides
        for prompt, n in zip(prompts, lengths[:, 1 + SIDES.index(side)], strict=True)
    ]
