"""The verbs of the cache: ls, verify, gc."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.claim import claim
from pipeline.cluster.connect import disconnect
from pipeline.cluster.items import on_ray
from pipeline.cluster.pool import Reading, on_pool
from pipeline.errors import InputError, RunError, visible
from pipeline.models.ask import verifier
from pipeline.models.identity import identity_of, versions
from pipeline.models.start import InitialPolicy
from pipeline.place import Place
from pipeline.stages.preflight import Inputs, preflight
from pipeline.stages.prepare import prepare
from pipeline.stages.reference import reference_of
from pipeline.stages.score import batch_rows, scorer_options
from pipeline.stages.sft import sft
from pipeline.store.cache import Cache
from pipeline.store.compaction import compact
from pipeline.store.folder import Folder
from pipeline.store.needed import look_up, read_sequences, wanted_rows

DAY = 24 * 60 * 60
# Nats per token between a sequence alone and in the batch that scored it: bfloat16 rounds otherwise there.
VERIFY_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}
PRINTED_WIDTH = 140  # columns where the output is not a terminal


def ls(place: Place) -> None:
    """Print what is cached, with one line per model: a reference, or a policy that was evaluated."""
    table = Table(title=Text(visible(place.cache_root)))
    for column in ("identity", "used as", "model", "dtype", "rows", "parts", "MB", "last used"):
        table.add_column(column, justify="right" if column in ("rows", "parts", "MB") else "left")
    for cache in _caches(place):
        meaning = {"config": {}, "weights": "?", "dtype": "?", **cache.meaning()}
        model = f"{meaning['config'].get('model_type', '?')} {meaning['weights'][:12]}"
        used, role = cache.last_use() or (None, "?")
        when = datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M") if used is not None else "?"
        counts = f"{cache.rows():,}", f"{len(cache.parts()):,}", f"{cache.bytes() / 1e6:,.1f}"
        cells = cache.where.rpartition("/")[2], role, model, meaning["dtype"], *counts, when
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console = Console()
    (console if console.is_terminal else Console(width=PRINTED_WIDTH)).print(table)


def verify(place: Place, rows: int) -> None:
    """Score random sequences of this configuration again, on the pool, and compare them with the cache.

    Raises:
        InputError: none of the sequences is cached, or the cluster has no room for the pool.
        RunError: the cache has different values.
    """
    claimed, reference = place.config, place.config.reference.model_copy(update={"by": "pool"})
    place = replace(place, config=claimed.model_copy(update={"reference": reference}))  # whoever scores in a run
    inputs = preflight(place)
    with claim(claimed, place.run_dir, place.workspace, place.terminal.note) as lease, place.terminal.showing():
        _verify(replace(place, lease=lease), inputs, rows)


def _verify(place: Place, inputs: Inputs, rows: int) -> None:
    """Verify under the lease of the run's folder."""
    try:
        each = on_ray(place)
        tokens = prepare(place, inputs, each).result
        with InitialPolicy(place, inputs.policy, len(inputs.tokenizer), inputs.adapter) as policy:
            start = sft(place, inputs, each, policy, tokens).result
        start = reference_of(place, inputs, start)
        identity, _ = identity_of(start, place.config.train.dtype)
        cache = place.cache(identity)
        parts = tokens.paths("train/") + tokens.paths("eval/")
        needed = look_up(cache, parts, place.terminal.note)
        present, total = needed.cached, len(needed.cached) + len(needed.missing)
        if not len(present):
            raise InputError(
                f"{cache.where} holds none of the {total:,} sequences of this configuration; run `ray-align score` "
                "first"
            )
        chosen = np.sort(np.random.default_rng().choice(present, min(rows, len(present)), replace=False))
        items = wanted_rows(parts, needed.columns, chosen)
        reading = Reading(read_sequences, batch_rows(place, len(chosen)))
        answers = list(on_pool(place, items, verifier, scorer_options(place, inputs, start, cache), reading))
    finally:
        disconnect()
    differences = np.concatenate([answer["differences"] for answer in answers])
    print(
        f"{len(chosen):,} of {len(present):,} cached sequences scored again (of {total:,} in the configuration): "
        f"largest difference {differences.max():.3g} nats per token"
    )
    for maker in cache.makers():
        if maker != versions():
            print(f"some were scored with {_named(maker)}; installed are {_named(versions())}")
    limit = place.config.reference.guard_tolerance or VERIFY_TOLERANCE[place.config.train.dtype]
    if exceeds(differences, limit):
        raise RunError(
            f"the log-probs in {cache.where} differ from the model's by {differences.mean():.3g} nats per token on "
            f"average; the limit is {limit:g} (reference.guard_tolerance). Remove that folder to score them again."
        )


def exceeds(differences: np.ndarray, limit: float) -> bool:
    """Whether differences are above a limit on average; those that are not finite are above any."""
    return not differences.mean() <= limit


def gc(place: Place, days: float | None) -> None:
    """Compact the parts of every cached model. Remove the models that were not used for more than `days` days."""
    for cache in _caches(place):
        name = visible(cache.where.rpartition("/")[2])
        used = cache.last_use()
        idle = (time.time() - used[0]) / DAY if used is not None else 0.0
        if days is not None and idle > days:
            cache.folder.remove_all()
            print(f"{name}: removed, not used for {idle:.0f} days")
            continue
        done = compact(cache)
        lost = f", {len(done.damaged)} damaged parts removed" if done.damaged else ""
        print(
            f"{name}: {done.parts_before:,} parts -> {done.parts:,}, {done.rows_before:,} rows -> {done.rows:,}{lost}"
        )


def _caches(place: Place) -> list[Cache]:
    """Return the cache of every model."""
    root = Folder(place.cache_root)
    return [Cache(f"{root.where}/{name}") for name in root.folders()]


def _named(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in libraries.items())
