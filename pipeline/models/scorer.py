"""One frozen model that scores sequences: their log-probs into the cache, or compared with those that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.batch import SequenceBatch, same_prompt
from dpo.lm.logprobs import LogprobModel
from dpo.lm.model_config import read_config, vocabulary_size
from dpo.lm.models import why_unshared
from dpo.lm.sequences import TokenSequence
from dpo.lm.transfer import begin_reading
from dpo.lm.trial import fastest_way, try_ways
from pipeline.errors import InputError
from pipeline.models.device import Device
from pipeline.models.load import load_frozen
from pipeline.store.cache import Cache, keys_of
from pipeline.store.memory import peak_bytes
from pipeline.store.tokens import lists
from pipeline.worker.ahead import made_ahead, one_later


class Scorer:
    """A model and the cache that it writes to."""

    def __init__(
        self,
        folder: str,
        cache: str,
        dtype: str,
        pad_id: int,
        batch_tokens: int,
        may_share: bool,
        device: Device,
        worn: Worn = ALONE,
    ):
        """
        Args:
            folder: of the model.
            worn: an adapter, and how the model's weights are quantized.
            cache: folder or URI of this model's log-probs.
            batch_tokens: tokens computed at once, a shared prompt counted once and padding included.
            may_share: whether a prompt may be computed once for its completions, as far as the configuration says.
        """
        self.folder = folder
        config = read_config(folder)
        against = why_unshared(config) if may_share else "train.share_prompts = false"
        self.model = LogprobModel(load_frozen(folder, dtype, device, worn))
        place, vocabulary = next(self.model.parameters()).device, vocabulary_size(config) or 2
        trial = try_ways(self.model, config, vocabulary, against is None, place)
        chosen = fastest_way(self.model, trial, vocabulary, against is None, place)
        self.model.way, self.unshared = chosen.way, against or chosen.unshared
        self.cache = Cache(cache)
        self.device, self.turn = device, Lock()
        self.pad_id, self.batch_tokens = pad_id, batch_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score rows of SEQUENCES into one part of the cache. Two threads may ask at once: one computes meanwhile."""
        self.cache.write(table["key"].to_pylist(), self.logps(table))  # of finite numbers alone
        answer = {"sequences": [table.num_rows], "peak_bytes": [peak_bytes()], "unshared": [self.unshared or ""]}
        return pa.table(answer)

    def logps(self, table: pa.Table) -> list[np.ndarray]:
        """The log-probs of each row of SEQUENCES."""
        self.device.take()  # threads of the CPU are set for each thread by itself
        found = score_all(self.model, sequences_of(table), self.pad_id, self.batch_tokens, self.turn)
        wrong = not_finite(found, self.folder)
        if wrong is not None:
            raise InputError(wrong)
        return found


def not_finite(logps: list[np.ndarray], folder: str) -> str | None:
    """Return the sentence that refuses log-probs which are not finite, None where all are."""
    wrong = sum(not np.isfinite(values).all() for values in logps)
    if not wrong:
        return None
    return (
        f"{folder}: the model gives log-probs that are infinite or NaN for {wrong:,} of {len(logps):,} sequences that "
        "were scored together, so they are not cached. Its weights are infinite or NaN, or overflow in this dtype: "
        "take other weights, or train.dtype=float32."
    )


class Verifier(Scorer):
    """Scores sequences that the cache has, and compares."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of SEQUENCES -> the difference of each scored token's log-prob, in nats, absolute."""
        cached = self.cache.values(np.sort(keys_of(table["key"])))
        self.device.take()
        # Each by itself, as no batch of a run computed it: so a value that depends on its batch is found, too.
        alone = [
            score_all(self.model, [each], self.pad_id, self.batch_tokens, self.turn) for each in sequences_of(table)
        ]
        fresh = zip(table["key"].to_pylist(), (values for (values,) in alone), strict=True)
        found = [np.abs(cached[key] - values).tolist() for key, values in fresh]
        return pa.table({"differences": pa.array(found, pa.list_(pa.float64()))})


def sequences_of(table: pa.Table) -> list[TokenSequence]:
    """The rows of SEQUENCES, unpacked."""
    columns = (lists(table[name]) for name in ("prompt_ids", "completion_ids", "mask"))
    return [TokenSequence(*row) for row in zip(*columns, strict=True)]


@torch.inference_mode()
def score_all(
    model: LogprobModel, sequences: list[TokenSequence], pad_id: int, batch_tokens: int, turn: Lock | None = None
) -> list[np.ndarray]:
    """Log-probs of each sequence's scored tokens, float32, in the order given.

    While a micro-batch is computed, the next one is laid out, and the one before is read.

    Args:
        turn: held while the work of a micro-batch is handed to the device, where several threads use the model.
    """
    device = next(model.parameters()).device
    turn = turn or Lock()

    def lay_out(now: list[int]) -> tuple[list[int], SequenceBatch]:
        return now, model.collate([sequences[i] for i in now], pad_id).to(device)

    def compute(now: list[int], batch: SequenceBatch) -> tuple[list[int], SequenceBatch, Callable[[], Tensor]]:
        with turn:
            return now, batch, begin_reading(model(batch).logps.float())

    result: list[Any] = [None] * len(sequences)
    cut = batches(sequences, batch_tokens, model.way.shared, model.model.row_each)
    computed = (compute(*laid_out) for laid_out in made_ahead(lay_out, cut))
    for now, batch, read in one_later(computed):
        for i, values in zip(now, batch.split(read().numpy()), strict=True):
            result[i] = values
    return result


def batches(sequences: list[TokenSequence], batch_tokens: int, shared: bool, row_each: bool) -> Iterator[list[int]]:
    """Indices of what is computed at once: whole prompts where they are shared, the longest first.

    A prompt with more completions than fit is computed again for the rest of them.
    """
    padded = row_each or not shared
    now: list[int] = []
    used = widest = rows = 0
    for members, tokens in sorted(units(sequences, batch_tokens, shared), key=lambda unit: -unit[1]):
        widest, rows = max(widest, tokens), rows + 1
        needed = widest * rows if padded else used + tokens
        if now and needed > batch_tokens:
            yield now
            now, used, widest, rows = [], 0, tokens, 1
        now = now + members
        used += tokens
    if now:
        yield now


def units(sequences: list[TokenSequence], batch_tokens: int, shared: bool) -> Iterator[tuple[list[int], int]]:
    """Sequences that are computed together, and their tokens: one sequence, or the completions of one prompt."""
    if not shared:
        yield from (([i], len(s.prompt_ids) + len(s.completion_ids)) for i, s in enumerate(sequences))
        return
    for members in same_prompt(sequences):
        prompt = len(sequences[members[0]].prompt_ids)
        unit: list[int] = []
        tokens = prompt
        for i in members:
            completion = len(sequences[i].completion_ids)
            if unit and tokens + completion > batch_tokens:
                yield unit, tokens
                unit, tokens = [], prompt
            unit.append(i)
            tokens += completion
        yield unit, tokens
