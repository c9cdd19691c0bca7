"""The verbs of the cache: ls, verify, gc."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from pipeline.errors import InputError, RunError
from pipeline.place import Place
from pipeline.stages.cluster import disconnect
from pipeline.stages.prepare import prepare
from pipeline.stages.score import Scorer, identity_of, look_up, read_sequences, wanted_rows
from pipeline.stages.sft import sft
from pipeline.stages.train import guard_tolerance
from pipeline.store.cache import Cache
from pipeline.store.compaction import compact
from pipeline.store.folder import Folder

DAY = 24 * 60 * 60
PRINTED_WIDTH = 140  # columns where the output is not a terminal


def ls(place: Place) -> None:
    """What is cached: one line a model, a reference or a policy that was evaluated."""
    table = Table(title=place.cache_root)
    for column in ("identity", "used as", "model", "dtype", "rows", "parts", "MB", "last used"):
        table.add_column(column, justify="right" if column in ("rows", "parts", "MB") else "left")
    for cache in _caches(place):
        meaning = _meaning(cache)
        model = f"{meaning['config'].get('model_type', '?')} {meaning['weights'][:12]}"
        used, role = cache.last_use() or (None, "?")
        when = datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M") if used is not None else "?"
        counts = f"{cache.rows():,}", f"{len(cache.parts()):,}", f"{cache.bytes() / 1e6:,.1f}"
        table.add_row(cache.where.rpartition("/")[2], role, model, meaning["dtype"], *counts, when)
    console = Console()
    (console if console.is_terminal else Console(width=PRINTED_WIDTH)).print(table)


def verify(place: Place, rows: int) -> None:
    """Score some random sequences of this configuration again, and compare.

    Raises:
        InputError: none of them is cached.
        RunError: the cache holds other numbers.
    """
    place.open()
    try:
        tokens = prepare(place)
        start = sft(place, tokens)
    finally:
        disconnect()
    identity, _ = identity_of(place, start)
    cache = place.cache(identity)
    parts = tokens.paths("train/") + tokens.paths("eval/")
    needed = look_up(place, cache, parts)
    present, total = needed.cached, len(needed.cached) + len(needed.missing)
    if not len(present):
        raise InputError(f"none of the {total:,} sequences of this configuration is in {cache.where}")
    chosen = np.sort(np.random.default_rng().choice(present, min(rows, len(present)), replace=False))
    differences = _differences(place, start.folder, cache, wanted_rows(parts, needed.columns, chosen), chosen)
    print(
        f"{len(chosen):,} of {len(present):,} cached sequences scored again (of {total:,} in the configuration): "
        f"largest difference {differences.max():.3g} nats a token"
    )
    limit = guard_tolerance(place.config)
    if differences.mean() > limit:
        raise RunError(
            f"{cache.where} holds other log-probs than the model gives: {differences.mean():.3g} nats a token on "
            f"average, the limit is {limit:g} (reference.guard_tolerance). Remove that folder to score anew."
        )


def _differences(
    place: Place, model: Path, cache: Cache, items: list[dict[str, Any]], chosen: np.ndarray
) -> np.ndarray:
    """Between cached and fresh log-probs, of every token."""
    cached = cache.values(chosen)
    scorer = Scorer(**Scorer.options(place, model, cache))
    found = [np.zeros(0, np.float32)]
    for sequences in read_sequences(pa.Table.from_pylist(items)):
        for key, fresh in zip(sequences["key"].to_pylist(), scorer.score(sequences), strict=True):
            found.append(np.abs(cached[key] - fresh))
    return np.concatenate(found)


def gc(place: Place, days: float | None) -> None:
    """Compact every reference's parts; remove what was not used for so many days."""
    for cache in _caches(place):
        name = cache.where.rpartition("/")[2]
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
    """Of every reference."""
    root = Folder(place.cache_root)
    return [Cache(f"{root.where}/{name}") for name in root.folders()]


def _meaning(cache: Cache) -> dict[str, Any]:
    return json.loads(cache.folder.read("identity.json"))
