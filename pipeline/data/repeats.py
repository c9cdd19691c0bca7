"""Token parts -> repeated pairs, and pairs that also occur with chosen and rejected swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpo.text.rejection import Rejection
from pipeline.data.rejections import Counts, entry, place_of_row, where, write_lines
from pipeline.store.cache import keys_of
from pipeline.store.parquet import write_parquet
from pipeline.store.tokens import place_of


class Repeats(NamedTuple):
    """Row ids, in file order. Pairs are equal if the tokens of prompt, chosen and rejected are equal."""

    duplicates: np.ndarray  # rows that repeat the pair of an earlier row
    first: np.ndarray  # for each duplicate, the first row with its pair
    contradictions: np.ndarray  # rows whose pair another row has with the sides swapped
    counterpart: np.ndarray  # for each contradiction, the first such row


def find_repeats(parts: list[Path]) -> Repeats:
    """Find the repeated and the contradicting pairs of token parts. Needs 24 bytes of memory per pair.

    Pairs are compared by hash: two different pairs count as equal with a probability of 2^-128.
    """
    columns = [_sides(path) for path in parts]
    empty = np.empty(0, np.int64)
    if not columns:
        return Repeats(empty, empty, empty, empty)
    ids, chosen, rejected = (np.concatenate(column) for column in zip(*columns, strict=True))
    low, high, turned = np.minimum(chosen, rejected), np.maximum(chosen, rejected), chosen > rejected
    order = np.lexsort((ids, turned, high, low))
    ids, low, high, turned = ids[order], low[order], high[order], turned[order]
    new_pair = np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])]
    new_side = new_pair | np.r_[True, turned[1:] != turned[:-1]]
    pair, side = np.cumsum(new_pair) - 1, np.cumsum(new_side) - 1
    first_of_pair, first_of_side = np.flatnonzero(new_pair), np.flatnonzero(new_side)
    # Where a pair occurs both ways round: its first row has the first way, and the rows of the other way follow.
    two = np.bincount(pair[first_of_side], minlength=len(first_of_pair)) == 2
    opposed = two[pair]
    other = np.where(side == side[first_of_pair][pair], side + 1, side - 1)[opposed]
    again = ~new_side
    found = (ids[again], ids[first_of_side[side[again]]]), (ids[opposed], ids[first_of_side[other]])
    sorted_ = [(rows[np.argsort(rows)], others[np.argsort(rows)]) for rows, others in found]
    return Repeats(*sorted_[0], *sorted_[1])


def _sides(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row ids, and for both sequences the half of the key that depends on the completion."""
    table = pq.read_table(path, columns=["row_id", "chosen_key", "rejected_key"])
    halves = [_half(keys_of(table[f"{name}_key"])) for name in ("chosen", "rejected")]
    return table["row_id"].to_numpy(), halves[0], halves[1]


def _half(keys: np.ndarray) -> np.ndarray:
    return keys.view(np.uint8).reshape(len(keys), -1)[:, -8:].copy().view(np.uint64).reshape(-1)


def settle_repeats(folder: Path, split: str, files: list[str], total: Counts, drop: set[str]) -> None:
    """Count the repeated and contradicting pairs of a split, and drop the kinds in `drop`.

    Parts with dropped pairs are rewritten without them; the pairs are recorded as rejections.
    """
    parts = sorted((folder / split).glob("*.parquet"))
    found = find_repeats(parts)
    total.counts["duplicates"] += len(found.duplicates)
    total.counts["contradictions"] += len(found.contradictions)
    why: dict[int, tuple[int, Rejection]] = {}
    if "duplicate" in drop:
        same = Rejection("the same pair as", "duplicate")
        why |= {row: (first, same) for row, first in zip(*map(np.ndarray.tolist, found[:2]), strict=True)}
    if "contradiction" in drop:
        turned = Rejection("chosen and rejected are swapped in", "contradiction")
        why |= {row: (other, turned) for row, other in zip(*map(np.ndarray.tolist, found[2:]), strict=True)}
    entries: list[str] = []
    lines = _lines(parts, [other for other, _ in why.values()])
    for path in parts if why else []:
        table = pq.read_table(path)
        gone = pc.is_in(table["row_id"], pa.array(list(why), pa.int64()))  # type: ignore[attr-defined]
        dropped = table.filter(gone).to_pylist()
        if not dropped:
            continue
        for row in dropped:
            other, reason = why[row["row_id"]]
            total.reject(reason.kind)
            total.use(split, row, -1)
            entries.append(_repeat_entry(row, files[place_of(other)[0]], lines[other], reason, files))
        path.unlink()
        del total.files[f"{split}/{path.name}"]
        if len(dropped) < len(table):
            kept = table.filter(pc.invert(gone))  # type: ignore[attr-defined]
            total.files[f"{split}/{path.name}"] = write_parquet(path, kept)
    if entries:
        name = f"rejected/repeats-{split}.jsonl"
        total.files[name] = write_lines(folder / name, entries)


def _lines(parts: list[Path], ids: list[int]) -> dict[int, str]:
    """Map row ids to their places in the files."""
    found: dict[int, str] = {}
    for path in parts if ids else []:
        table = pq.read_table(path, columns=["row_id", "line", "byte"])
        for row in table.filter(pc.is_in(table["row_id"], pa.array(ids, pa.int64()))).to_pylist():  # type: ignore[attr-defined]
            found[row["row_id"]] = where(place_of_row(row["line"], row["byte"]))
    return found


def _repeat_entry(row: dict[str, Any], other: str, at: str, why: Rejection, files: list[str]) -> str:
    why = why._replace(reason=f"{why.reason} {Path(other).name} {at}")
    return entry(files[place_of(row["row_id"])[0]], place_of_row(row["line"], row["byte"]), why, "")
