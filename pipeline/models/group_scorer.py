"""A group of workers that holds one model as it trains it, sharded by ZeRO, and scores sequences into the cache.

All ranks go through the same rounds of sequences and work out the same plan. Each rank computes its share of a round
and writes it, so that a group that is killed goes on with the next round.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from dpo.lm.batch import SequenceBatch
from dpo.lm.sequences import TokenSequence
from dpo.lm.transfer import begin_reading
from pipeline.models.scorer import not_finite, sequences_of, units
from pipeline.store.cache import Cache
from pipeline.store.needed import SEQUENCES, look_up, read_sequences, wanted_rows
from pipeline.worker.ahead import made_ahead, one_later
from pipeline.worker.device import occupy
from pipeline.worker.engine import Engine
from pipeline.worker.job import Job
from pipeline.worker.plan import plan_step
from pipeline.worker.rank import group_peak_bytes
from pipeline.worker.unscored import Scored, Unscored
from pipeline.worker.verdict import Verdict, out_of_memory_as, with_one_verdict


def score_share(job: Job, work: Unscored, device: torch.device) -> Scored:
    """Score this rank's share of what the cache lacks.

    Args:
        job: of which the model, its data type and its sharding count.

    Raises:
        InputError: a rank is out of memory, or has log-probs that are not finite; on every rank alike.
    """
    return with_one_verdict(Path(job.note), partial(_score_share, job, work, device))


def _score_share(job: Job, work: Unscored, device: torch.device) -> Scored:
    occupy(device, job.threads)
    cache = Cache(work.cache)
    missing = _missing(cache, work.parts)
    engine = Engine(job, device)
    with torch.no_grad(), ThreadPoolExecutor(1) as writer:
        writing: Future[str] | None = None
        for table in _rounds(missing, work.batch_sequences * dist.get_world_size()):
            with out_of_memory_as(partial(_sentence, work.batch_tokens)):
                found = _share_of_round(engine, table, work.batch_tokens)
            wrong = not_finite(found[1], job.model)
            if wrong is not None:
                raise Verdict(wrong)
            if writing is not None:
                writing.result()
            writing = writer.submit(cache.write, *found) if found[0] else None
        if writing is not None:
            writing.result()
    peak = group_peak_bytes(device)
    unshared = engine.unshared
    engine.close()
    return Scored(peak, unshared)


def _sentence(batch_tokens: int) -> str:
    return (
        f"Memory ran out while the workers scored, on rank {dist.get_rank()} of {dist.get_world_size()}. Lower "
        f"reference.batch_tokens (it is {batch_tokens:,}) or raise deepspeed.stage, and run again."
    )


def _missing(cache: Cache, parts: list[str]) -> list[dict[str, Any]]:
    """The rows of token parts that the cache lacks now, by part.

    The first rank looks for all: another writer may add to the cache meanwhile, and ranks with different rows would
    wait for each other for ever.
    """
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        paths = [Path(part) for part in parts]
        needed = look_up(cache, paths, lambda _: None)
        found = [wanted_rows(paths, needed.columns, needed.missing)]
    dist.broadcast_object_list(found)
    return found[0]


def _rounds(items: list[dict[str, Any]], size: int) -> Iterator[pa.Table]:
    """Tables of `size` sequences, the last one of what is left, whatever the sizes of the token parts."""
    waiting = SEQUENCES.empty_table()
    for item in items:
        for table in read_sequences(pa.Table.from_pylist([item])):
            waiting = pa.concat_tables([waiting, table])
            while waiting.num_rows >= size:
                yield waiting.slice(0, size)
                waiting = waiting.slice(size)
    if waiting.num_rows:
        yield waiting


def _share_of_round(engine: Engine, table: pa.Table, batch_tokens: int) -> tuple[list[bytes], list[np.ndarray]]:
    """The keys and log-probs of the sequences of a round that are this rank's."""
    names, sequences = table["key"].to_pylist(), sequences_of(table)
    keys: list[bytes] = []
    logps: list[np.ndarray] = []

    def lay_out(mine: list[int]) -> tuple[list[int], SequenceBatch]:
        # A micro-batch without sequences computes one all the same, since other ranks' collectives wait.
        batch = [sequences[i] for i in mine] or [
            min(sequences, key=lambda s: len(s.prompt_ids) + len(s.completion_ids))
        ]
        return mine, engine.engine.module.collate(batch, engine.pad_id).to(engine.device)

    laid_out = made_ahead(lay_out, _my_micro_batches(engine, sequences, batch_tokens))
    computed = ((i, batch, begin_reading(engine.logps(batch, agreement=False).logps.float())) for i, batch in laid_out)
    for mine, batch, read in one_later(computed):
        keys += [names[i] for i in mine]
        logps += batch.split(read().numpy())[: len(mine)]
    return keys, logps


def _my_micro_batches(engine: Engine, sequences: list[TokenSequence], batch_tokens: int) -> list[list[int]]:
    """The indices of the sequences of each micro-batch of this rank; every rank has as many."""
    whole = list(units(sequences, batch_tokens, engine.way.shared))
    padded_rows = 1 if engine.row_each or not engine.way.shared else 0
    plan = plan_step([tokens for _, tokens in whole], dist.get_world_size(), batch_tokens, padded_rows)
    return [[i for number in chosen for i in whole[number][0]] for chosen in plan[dist.get_rank()]]
