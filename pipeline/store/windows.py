"""An epoch in windows: the plan of the windows, spilling rows into them, and joining rows with log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.store.cache import KEY, SCHEMA, keys_of, match
from pipeline.store.parquet import row_groups
from pipeline.store.tokens import ORDERED, PAIRS, mix, repeated

WINDOW_BYTES = 64 * 2**20  # size of the token parts in a window; several windows are prepared while one is trained on


class Order(NamedTuple):
    """The order of an epoch; file order if `epoch` is None. `weights` are those of the files: see `repeated`."""

    seed: int
    epoch: int | None
    weights: tuple[float, ...] = ()

    def keys(self, row_ids: np.ndarray) -> np.ndarray:
        """Return a uint64 for each row, all different. Sorting by them gives the order."""
        return row_ids.astype(np.uint64) if self.epoch is None else mix(row_ids, self.seed, self.epoch)


@dataclass(frozen=True)
class Windows:
    """The windows of an epoch. Windows 1, 2, ... begin at the order keys in `boundaries`."""

    rows: int
    steps: int
    steps_per_window: int
    boundaries: np.ndarray
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # once written: name -> entry of a manifest

    @property
    def count(self) -> int:
        return len(self.boundaries) + 1


def plan_windows(parts: list[Path], order: Order, batch_pairs: int, steps_per_window: int | None = None) -> Windows:
    """Cut an order into windows of about WINDOW_BYTES, and of at most `steps_per_window` steps. Reads only row ids.

    Raises:
        InputError: the weights leave no row.
    """
    ids = [_rows(path, order, "row_id")["row_id"].to_numpy() for path in parts]
    keys = np.sort(np.concatenate([order.keys(found) for found in ids]))
    if not len(keys):
        raise InputError(f"the weights {list(order.weights)} of the sources of data.train leave no row; raise them")
    steps = -(-len(keys) // batch_pairs)
    stored, size = sum(pq.read_metadata(path).num_rows for path in parts), sum(path.stat().st_size for path in parts)
    windows = max(1, -(-size * len(keys) // (stored * WINDOW_BYTES)))  # repeated rows need space too
    per_window = min(-(-steps // windows), steps_per_window or steps)
    return Windows(len(keys), steps, per_window, keys[per_window * batch_pairs :: per_window * batch_pairs])


def _rows(path: Path, order: Order, *columns: str) -> pa.Table:
    return repeated(pq.read_table(path, columns=list(columns)), order.weights)


def window_index(parts: list[Path], order: Order, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique pairs of sequence key and window that needs it, sorted by key."""
    keys, where = [], []
    for path in parts:
        table = _rows(path, order, "row_id", "chosen_key", "rejected_key")
        window = np.searchsorted(windows.boundaries, order.keys(table["row_id"].to_numpy()), side="right")
        for side in ("chosen_key", "rejected_key"):
            keys.append(keys_of(table[side]))
            where.append(window.astype(np.int32))
    pairs = np.empty(sum(map(len, keys)), np.dtype([("key", KEY), ("window", ">i4")]))
    pairs["key"], pairs["window"] = np.concatenate(keys), np.concatenate(where)
    unique = np.unique(pairs.view(np.dtype((np.void, pairs.dtype.itemsize)))).view(pairs.dtype)
    return np.ascontiguousarray(unique["key"]), unique["window"].astype(np.int32)


def spill_rows(
    item: dict[str, Any],
    order: Order,
    windows: Windows,
    spill: str,
    tables: Callable[[str], Iterator[pa.Table]],
    lookup: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Write one spill file. Its row group w has the rows of this task's inputs that window w needs."""
    groups: list[list[pa.Table]] = [[] for _ in range(windows.count)]
    for name in item["names"]:
        for table in tables(name):
            if lookup is None:
                table = repeated(table, order.weights)
                window = np.searchsorted(windows.boundaries, order.keys(table["row_id"].to_numpy()), side="right")
                rows = np.arange(len(window))
            else:
                rows, window = _wanted(table, *lookup)
            for w in np.unique(window):
                groups[w].append(table.take(rows[window == w]))
    schema = PAIRS if lookup is None else SCHEMA
    path = Path(spill) / f"{item['kind']}-{item['number']:04}.parquet"
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for found in groups:
            # Write exactly one row group, even for an empty table: its number is the window's number.
            group = pa.concat_tables([schema.empty_table(), *found])
            writer.write_table(group.combine_chunks(), row_group_size=max(1, group.num_rows))


def stored_tables(path: str) -> Iterator[pa.Table]:
    yield from (table.select(PAIRS.names) for table in row_groups(path))


def _wanted(table: pa.Table, keys: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the needed rows of a cache table, once per window that needs them, and those windows."""
    found = keys_of(table["key"])
    first, last = np.searchsorted(keys, found, side="left"), np.searchsorted(keys, found, side="right")
    counts = last - first
    rows = np.repeat(np.arange(len(found)), counts)
    at = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return rows, windows[at]


def with_logps(tokens: pa.Table, logps: pa.Table) -> pa.Table:
    """Join rows of PAIRS with rows of the cache into rows of ORDERED.

    Raises:
        InputError: the log-probs of a sequence are missing.
    """
    for side in ("chosen", "rejected"):
        tokens = tokens.append_column(f"{side}_logps", _look_up(tokens[f"{side}_key"], logps))
    return tokens.cast(ORDERED)


def read_groups(spill: Path, kind: str, window: int, schema: pa.Schema) -> pa.Table:
    groups = [pq.ParquetFile(path).read_row_group(window) for path in sorted(spill.glob(f"{kind}-*.parquet"))]
    return pa.concat_tables([schema.empty_table(), *groups])


def _look_up(wanted: pa.ChunkedArray, logps: pa.Table) -> pa.ChunkedArray:
    """Look up the log-probs of each key. If two runs scored the same sequence, the first row wins."""
    keys, where = np.unique(keys_of(logps["key"]), return_index=True)
    rows, at = match(keys_of(wanted), keys)
    if len(rows) < len(wanted):
        raise InputError(f"the cache lacks the log-probs of {len(wanted) - len(rows)} sequences; score them first")
    return logps["logps"].take(pa.array(where[at]))
