"""Tokens + a frozen model -> log-probs in the workspace's cache, by a pool of Ray Data actors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from dpo.lm.batch import same_prompt
from dpo.lm.logprobs import LogprobModel, fastest_way
from dpo.lm.model_config import read_config, vocabulary_size
from dpo.lm.models import freeze, load_model
from dpo.lm.sequences import TokenSequence
from dpo.terms import reference_free
from pipeline.place import Place
from pipeline.stages.cluster import connect, over, translated_errors
from pipeline.stages.start import Start
from pipeline.store.artifacts import Artifact, fingerprint
from pipeline.store.cache import DAMAGED, KEY, SCHEMA, Cache, keys_of, match
from pipeline.store.tokens import IDS, MASK, lists

REFERENCE = "reference"
SCORER = 1  # raised when the same model and sequence would give other log-probs

SEQUENCES = pa.schema([("key", SCHEMA.field("key").type), ("prompt_ids", IDS), ("completion_ids", IDS), ("mask", MASK)])

# Entries of a model's config.json that do not change what it computes.
NOT_FORWARD = {
    "_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


class Scores(NamedTuple):
    """Every sequence of the tokens has its log-probs in this cache."""

    cache: Cache
    identity: str
    scored: int
    reused: int


def score(place: Place, tokens: Artifact, start: Start) -> Scores | None:
    """Score what the cache lacks of all pairs, training and held-out, with the policy's own start as the reference.

    None where the loss looks at no reference. With reference.mode = "overlap" nothing is scored yet.
    """
    unshared = place.sharing(start.folder)
    if unshared is not None:
        place.terminal.say(f"every sequence repeats its prompt, here and in training: {unshared}")
    if reference_free(place.config.mixture):
        place.counts |= {"sequences_scored": 0, "sequences_reused": 0}
        place.terminal.say("nothing to do: the loss looks at no reference")
        return None
    if place.config.reference.mode == "overlap":
        identity, meaning = identity_of(place, start)
        cache = place.cache(identity)
        cache.describe(meaning)
        cache.used(REFERENCE)
        place.terminal.say(f"while training runs (reference {identity})")
        return Scores(cache, identity, 0, 0)
    scores = score_sequences(place, tokens.paths("train/") + tokens.paths("eval/"), start, "score")
    place.counts |= {"sequences_scored": scores.scored, "sequences_reused": scores.reused}
    place.terminal.say(f"{scores.scored:,} sequences scored, {scores.reused:,} reused (reference {scores.identity})")
    return scores


def identity_of(place: Place, model: Start) -> tuple[str, dict[str, Any]]:
    """What decides a log-prob: the weights themselves, the config of the forward pass, the dtype, the scorer."""
    config = {k: v for k, v in read_config(model.folder).items() if k not in NOT_FORWARD and "drop" not in k}
    meaning = {"weights": model.digest, "config": config, "dtype": place.config.train.dtype, "scorer": SCORER}
    return fingerprint(meaning), meaning


def score_sequences(place: Place, parts: list[Path], model: Start, stage: str) -> Scores:
    """Score the sequences of token parts that the cache under this model's identity lacks."""
    identity, meaning = identity_of(place, model)
    cache = place.cache(identity)
    needed = look_up(place, cache, parts)
    items, missing, reused = wanted_rows(parts, needed.columns, needed.missing), len(needed.missing), len(needed.cached)
    cache.used(REFERENCE if stage == "score" else "evaluated policy")
    if missing:
        connect(place)
        cache.describe(meaning)
        done = 0
        for scored in run_pool(place, items, model, cache):
            done += scored
            place.terminal.live(stage, f"{done:,} of {missing:,} sequences")
    return Scores(cache, identity, missing, reused)


class Needed(NamedTuple):
    """The sequences of some token parts, in the light of a cache."""

    columns: list[tuple[np.ndarray, np.ndarray]]  # keys of chosen and of rejected completions in each part
    cached: np.ndarray  # keys, sorted, each once
    missing: np.ndarray


def look_up(place: Place, cache: Cache, parts: list[Path]) -> Needed:
    """Which sequences of token parts have log-probs; says which parts of the cache are damaged."""
    columns = key_columns(parts)
    wanted = all_keys(columns)
    found = cache.find(wanted)
    for name in found.damaged:
        place.terminal.note(f"damaged and set aside, to be scored again: {cache.where}/{DAMAGED}/{name}")
    return Needed(columns, wanted[found.have], wanted[~found.have])


def key_columns(parts: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The keys of chosen and of rejected completions in each part."""
    tables = [pq.read_table(path, columns=["chosen_key", "rejected_key"]) for path in parts]
    return [(keys_of(table["chosen_key"]), keys_of(table["rejected_key"])) for table in tables]


def all_keys(columns: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Every key of some parts, sorted, each once."""
    return np.unique(np.concatenate([np.empty(0, KEY), *(keys for pair in columns for keys in pair)]))


def wanted_rows(
    parts: list[Path], columns: list[tuple[np.ndarray, np.ndarray]], wanted: np.ndarray
) -> list[dict[str, Any]]:
    """For each part, which rows and sides (2 * row + side) have these keys: a sequence in several pairs only once."""
    items, planned = [], np.zeros(len(wanted), bool)
    for path, sides in zip(parts, columns, strict=True):
        codes = []
        for side, keys in enumerate(sides):
            rows, at = match(keys, wanted)
            different, first = np.unique(at, return_index=True)
            first = first[~planned[different]]
            planned[at[first]] = True
            codes.append(rows[first] * 2 + side)
        found = np.concatenate(codes).astype(np.int32)
        if len(found):
            items.append({"path": str(path), "rows": found.tobytes()})
    return items


def run_pool(
    place: Place, items: list[dict[str, Any]], model: Start, cache: Cache, in_order: bool = False
) -> Iterator[int]:
    """Score the rows of items into the cache; yields how many sequences each finished batch had."""
    config = place.config.reference
    options = Scorer.options(place, model.folder, cache)
    rows = sum(len(item["rows"]) // 4 for item in items)
    # Enough tasks for every actor, and none larger than what it holds at once.
    batch = min(config.batch_sequences, max(1, -(-rows // config.actors)))
    dataset = (
        over(items)
        .map_batches(read_sequences, batch_size=1, batch_format="pyarrow")
        .repartition(target_num_rows_per_block=batch)
        .map_batches(
            Scorer,
            fn_constructor_kwargs=options,
            batch_size=batch,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=config.actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor or None,
            resources=config.resources or None,
            label_selector=config.labels or None,
        )
    )
    dataset.context.execution_options.preserve_order = in_order
    with translated_errors():
        for row in dataset.iter_rows():
            place.peak_rss = max(place.peak_rss, row["peak_rss"])
            yield row["sequences"]


def threads(cpus: int, processes: int, gpus: int) -> int | None:
    """CPU threads of one of several processes on this machine; None leaves them alone beside a GPU."""
    return None if gpus else max(1, min(cpus, (os.cpu_count() or 1) // processes))


def read_sequences(table: pa.Table) -> Iterator[pa.Table]:
    """The wanted sequences of a token part by key: those of one prompt together, and near ones in one cache part."""
    for item in table.to_pylist():
        part = pq.read_table(item["path"])
        codes = np.frombuffer(item["rows"], np.int32)
        found = [part.take(codes[codes % 2 == side] // 2) for side in (0, 1)]
        columns = {
            "key": [f[f"{name}_key"] for f, name in zip(found, ("chosen", "rejected"), strict=True)],
            "prompt_ids": [f["prompt_ids"] for f in found],
            "completion_ids": [f[f"{name}_ids"] for f, name in zip(found, ("chosen", "rejected"), strict=True)],
            "mask": [f[f"{name}_mask"] for f, name in zip(found, ("chosen", "rejected"), strict=True)],
        }
        chunks = {name: pa.chunked_array([c for col in cols for c in col.chunks]) for name, cols in columns.items()}
        sequences = pa.table(chunks, schema=SEQUENCES)
        yield sequences.take(np.argsort(keys_of(sequences["key"])))


class Scorer:
    """One frozen model; scores a table of sequences and writes it as one part of the cache."""

    @staticmethod
    def options(place: Place, model: Path, cache: Cache) -> dict[str, Any]:
        """The keywords of a scorer as configured."""
        config = place.config.reference
        return {
            "folder": str(model),
            "cache": cache.where,
            "dtype": place.config.train.dtype,
            "pad_id": place.pad_id,
            "batch_tokens": config.batch_tokens,
            "may_share": place.sharing(model) is None,
            "threads": threads(config.cpus_per_actor, config.actors, config.gpus_per_actor),
        }

    def __init__(
        self,
        folder: str,
        cache: str,
        dtype: str,
        pad_id: int,
        batch_tokens: int,
        may_share: bool,
        threads: int | None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        device = torch.device("cuda" if threads is None else "cpu")
        self.model = LogprobModel(freeze(load_model(folder, getattr(torch, dtype)))).to(device)
        self.model.way = fastest_way(self.model, vocabulary_size(read_config(folder)) or 2, may_share, device)
        self.cache = Cache(cache)
        self.pad_id, self.batch_tokens = pad_id, batch_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        self.cache.write(table["key"].to_pylist(), self.score(table))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return pa.table({"sequences": [table.num_rows], "peak_rss": [peak]})

    def score(self, table: pa.Table) -> list[np.ndarray]:
        """The log-probs of each row of SEQUENCES."""
        columns = (lists(table[name]) for name in ("prompt_ids", "completion_ids", "mask"))
        sequences = [TokenSequence(*row) for row in zip(*columns, strict=True)]
        return score_all(self.model, sequences, self.pad_id, self.batch_tokens)


@torch.inference_mode()
def score_all(model: LogprobModel, sequences: list[TokenSequence], pad_id: int, batch_tokens: int) -> list[np.ndarray]:
    """Log-probs of each sequence's scored tokens, float32, in the order given."""
    device = next(model.parameters()).device
    result: list[Any] = [None] * len(sequences)
    for now in batches(sequences, batch_tokens, model.way.shared, model.model.row_each):
        batch = model.collate([sequences[i] for i in now], pad_id).to(device)
        logps = model(batch).logps.float().cpu().numpy()
        ends = batch.counts.cumsum(0).cpu().numpy()
        for i, values in zip(now, np.split(logps, ends[:-1]), strict=True):
            result[i] = values
    return result


def batches(sequences: list[TokenSequence], batch_tokens: int, shared: bool, row_each: bool) -> Iterator[list[int]]:
    """Indices of what is computed at once: whole prompts where they are shared, the longest first.

    A prompt with more completions than fit is computed again for the rest of them.
    """
    units = _units(sequences, batch_tokens, shared)
    padded = row_each or not shared
    now: list[int] = []
    used = widest = rows = 0
    for members, tokens in sorted(units, key=lambda unit: -unit[1]):
        widest, rows = max(widest, tokens), rows + 1
        needed = widest * rows if padded else used + tokens
        if now and needed > batch_tokens:
            yield now
            now, used, widest, rows = [], 0, tokens, 1
        now = now + members
        used += tokens
    if now:
        yield now


def _units(sequences: list[TokenSequence], batch_tokens: int, shared: bool) -> Iterator[tuple[list[int], int]]:
    """What is never torn apart, and its tokens: a sequence, or the completions of one prompt."""
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
