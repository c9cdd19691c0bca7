"""Looking up keys in a cache of log-probs: seconds and the process's peak memory, for caches of several sizes.

    python -m examples.benchmarks.cache --folder /tmp/cache-benchmark

Makes caches of synthetic keys (parts of 512 rows as the reference pool writes them, then compacted), and looks up keys
of which half are there. Every look-up reads and verifies all parts that may hold one, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.cache import KEY, KEY_BYTES, SCHEMA, Cache
from pipeline.store.compaction import compact

WRITTEN_AT_ONCE = 100_000  # rows; cut into parts below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the caches; emptied first, removed at the end")
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--wanted", type=int, default=1_000_000, help="keys to look up")
    parser.add_argument("--tokens", type=int, default=32, help="log-probs in a row")
    parser.add_argument("--part-rows", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    report: dict[str, Any] = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "measured": []}
    report |= {"wanted": options.wanted, "tokens": options.tokens, "part_rows": options.part_rows}
    for rows in options.rows:
        where = str(options.folder / str(rows))
        print(
            f"{rows:,} rows: written in {timed(fill, where, rows, options.tokens, options.part_rows)['seconds']:.0f} s"
        )
        for state in ("as written", "compacted"):
            row: dict[str, Any] = {"rows": rows, "state": state}
            if state == "compacted":
                row["compaction"] = timed(compacted, where)
            parts = Cache(where).parts()
            row |= timed(look_up, where, rows, options.wanted) | {"parts": len(parts), "bytes": Cache(where).bytes()}
            report["measured"].append(row)
            print(
                f"  {state}: {row['parts']:,} parts, {row['bytes'] / 1e9:.2f} GB, {row['wanted']:,} keys looked up, "
                f"{row['found']:,} found, {row['seconds']:.1f} s, peak {row['peak_bytes'] / 1e6:.0f} MB"
            )
        shutil.rmtree(where)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{report['date'][:10]}-cache.json"
    path.write_text(json.dumps(report) + "\n")
    print(path)


def keys_from(first: int, count: int) -> np.ndarray:
    """The keys of some rows: a function of their numbers, spread evenly; sorted."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    words = np.stack([(numbers + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15) for salt in (1, 2**40)], axis=1)
    words ^= words >> np.uint64(29)
    return np.sort(np.ascontiguousarray(words * np.uint64(0xBF58476D1CE4E5B9)).view(np.uint8).view(KEY).reshape(-1))


def fill(where: str, rows: int, tokens: int, part_rows: int) -> dict[str, Any]:
    cache, draw = Cache(where), np.random.default_rng(0)
    for first in range(0, rows, WRITTEN_AT_ONCE):
        keys = keys_from(first, min(WRITTEN_AT_ONCE, rows - first))
        values = draw.standard_normal(len(keys) * tokens, np.float32)
        offsets = np.arange(0, len(values) + 1, tokens, dtype=np.int32)
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys.tobytes())]
        )
        table = pa.table([column, pa.ListArray.from_arrays(offsets, values)], schema=SCHEMA)
        for start in range(0, len(keys), part_rows):
            cache.write_sorted(table.slice(start, part_rows).combine_chunks())
    return {}


def look_up(where: str, rows: int, wanted: int) -> dict[str, Any]:
    half = min(rows, wanted // 2)
    keys = np.unique(np.concatenate([keys_from(0, half), keys_from(10**12, wanted - half)]))
    found = Cache(where).find(keys)
    assert int(found.have.sum()) == half, "half of the keys are there"
    return {"wanted": len(keys), "found": half}


def compacted(where: str) -> dict[str, Any]:
    done = compact(Cache(where))
    return {"parts_before": done.parts_before, "parts_after": done.parts}


def timed(function: Any, *arguments: Any) -> dict[str, Any]:
    """What the function returns, with the seconds and the peak memory of a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (function, arguments))


def measured(function: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    began = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - began
    return result | {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    main()
