"""The policy at an evaluation + the job's questions -> a line of samples.jsonl with its answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.distributed as dist

from pipeline.store import run_files
from pipeline.worker.job import Job, Questions
from pipeline.worker.logs import append_line, say
from pipeline.worker.rank import Rank
from pipeline.worker.verdict import out_of_memory_as

MOST_AT_ONCE = 128  # prompts of a batch, where short ones leave room for more


def answer_questions(me: Rank, questions: Questions, step: int) -> None:
    """Answer the prompts with the weights after a step; rank 0 writes the answers. All ranks call it at one point.

    Raises:
        OutOfMemory: the model with the keys and values of a batch does not fit into memory.
    """
    prompts, job = questions.prompts, me.job
    found: dict[int, list[int]] = {}
    with out_of_memory_as(partial(_sentence, job, questions, step)):
        for batch in batches_of(questions, me.rank, me.world_size, job.micro_batch_tokens):
            say(job.logs, f"answering {len(prompts):,} prompts after step {step:,}: {len(found):,} done")
            mine = me.engine.answers([prompts[n] for n in batch], questions.max_new_tokens, questions.eos_id)
            # Ranks meet behind each batch, so that none waits for longer than a collective may take.
            theirs: list[dict[int, list[int]]] = [{}] * me.world_size
            dist.all_gather_object(theirs, dict(zip(batch, mine, strict=True)))
            for each in theirs:
                found |= each
    if me.rank == 0:
        row = {"step": step, "max_new_tokens": questions.max_new_tokens, "row_ids": questions.row_ids}
        answers = [found[n] for n in range(len(prompts))]
        append_line(Path(job.logs) / run_files.SAMPLES, {**row, "answers": answers})


def batches_of(questions: Questions, rank: int, world_size: int, budget: int) -> list[list[int]]:
    """Return the prompts of a rank by their numbers, in batches; prompts of about one length are together.

    All ranks have the same number of batches with as many prompts, because ranks that hold the model together call it
    together: where prompts do not divide evenly, some are answered twice.

    Args:
        budget: tokens of a micro-batch. A batch keeps to it with its answers, unless it is a single prompt: its keys
            and values are less than the activations that training has room for.
    """
    lengths = [len(prompt) for prompt in questions.prompts]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    each = -(-len(order) // world_size)
    mine = [order[n % len(order)] for n in range(rank, each * world_size, world_size)]
    at_once = max(1, min(MOST_AT_ONCE, budget // (max(lengths) + questions.max_new_tokens)))
    return [mine[first : first + at_once] for first in range(0, each, at_once)]


def _sentence(job: Job, questions: Questions, step: int) -> str:
    return (
        f"Memory ran out while {len(questions.prompts):,} held-out prompts were answered after step {step:,}. Lower "
        f"evaluate.max_new_tokens (it is {questions.max_new_tokens:,}) or train.micro_batch_tokens (it is "
        f"{job.micro_batch_tokens:,}), or set evaluate.generate_prompts = 0, which answers none, and run again."
    )
