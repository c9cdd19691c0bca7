"""Small files that tests read: configurations, token parts, a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpo.text.pairs import TokenizedPair
from pipeline.store.cache import KEY, Cache, keys_of
from pipeline.store.tokens import TOKENS, token_row

MINIMAL = {"data": {"train": "pairs.jsonl"}, "policy": {"kind": "x-transformers"}}


def toml(value: Any) -> str:
    """One value as TOML; all but tables are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def config_file(folder: Path, **sections: dict[str, Any] | None) -> str:
    """A TOML file of the least that is needed and the given sections; None leaves one out."""
    tree = {name: fields for name, fields in {**MINIMAL, **sections}.items() if fields is not None}
    lines = [f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in fields.items()) for name, fields in tree.items()]
    path = folder / "run.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def token_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of TOKENS. A third of the chosen sides are sequences that other pairs have too."""
    draw = np.random.default_rng(seed)
    rows = []
    for identity in range(count):
        prompt = draw.integers(0, 5, 3).tolist()
        chosen, rejected = (draw.integers(0, 50, draw.integers(1, 6)).tolist() for _ in range(2))
        if identity % 3 == 0:
            prompt, chosen = [1, 2, 3], [identity % 2, 7]
        masks = [True] * len(chosen), [True] * len(rejected)
        rows.append(token_row(identity, TokenizedPair(prompt, chosen, rejected, *masks, False, 0)))
    return rows


def write_part(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS), path)
    return path


def parts_of(folder: Path, rows: list[dict[str, Any]], sizes: list[int]) -> list[Path]:
    """The rows, dealt out in order to token parts of these sizes."""
    folder.mkdir()
    ends = np.cumsum(sizes)
    assert ends[-1] == len(rows)
    return [
        write_part(folder / f"{end}-{size}.parquet", rows[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]


def logps_of(key: bytes, length: int) -> np.ndarray:
    """Made-up log-probs that only this sequence has."""
    start = int.from_bytes(key[-2:], "big")
    return np.arange(start, start + length, dtype=np.float32) / -1024


def fill_cache(folder: Path, rows: list[dict[str, Any]], parts: int) -> Cache:
    """Every sequence of the rows once, dealt out to so many parts."""
    cache = Cache(str(folder))
    lengths = {row[f"{side}_key"]: len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")}
    keys = list(lengths)
    for number in range(parts):
        mine = keys[number::parts]
        cache.write(mine, [logps_of(key, lengths[key]) for key in mine])
    return cache


def keys_in(cache: Cache) -> np.ndarray:
    """Every key that a cache holds, sorted, each once."""
    found = [keys_of(table["key"]) for name in cache.parts() for table in cache.read(name)]
    return np.unique(np.concatenate([np.empty(0, KEY), *found]))
