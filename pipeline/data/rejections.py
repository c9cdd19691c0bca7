"""Rows that are not used: their lines in rejected.jsonl, and counts by kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dpo.text.rejection import Rejection
from pipeline.store.parquet import write_synced

# Kinds that are no fault of the row. They do not count towards data.max_rejected_fraction.
NOT_A_FAULT = ("tie", "duplicate", "contradiction")

COUNTS = ("read", "train", "eval", "rejected", "apart", "truncated", "cut", "tokens", "duplicates", "contradictions")
COUNTS += (
    "chat",
    "strings",
    "system",
    "tools",
    "calls",
    "several_turns",
)  # pairs with features that the chat template must support


class Counts:
    """Counts of rows and tokens by name, of rejections by kind, of odd pairs by what was noticed, and the parts' files.

    `unread` counts rows by the columns that nobody reads, `forms` messages and strings by the number of their file.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}  # relative name -> entry of a manifest
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self.reasons: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.noticed: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()

    def plain(self) -> dict[str, Any]:
        """Return the counts as `add` takes them."""
        by_name = {"reasons": self.reasons, "unread": self.unread, "noticed": self.noticed, "forms": self.forms}
        return {"counts": self.counts, **by_name}

    def add(self, other: dict[str, Any]) -> None:
        self.counts = {name: self.counts[name] + other["counts"][name] for name in COUNTS}
        self.reasons.update(other["reasons"])
        self.unread.update(other["unread"])
        self.noticed.update(other["noticed"])
        self.forms.update(other["forms"])
        self.files |= other["files"]

    def reject(self, kind: str) -> None:
        self.reasons[kind] += 1
        self.counts["rejected"] += 1

    def use(self, split: str, row: dict[str, Any], sign: int = 1) -> None:
        """Count a row of TOKENS as used. With sign -1, take back an earlier count."""
        lengths = [len(row[f"{name}_ids"]) for name in ("prompt", "prompt", "chosen", "rejected")]
        found = {
            split: 1,
            "apart": row["apart"],
            "truncated": row["cut"] > 0,
            "cut": row["cut"],
            "tokens": sum(lengths),
        }
        for name, number in found.items():
            self.counts[name] += sign * int(number)


def where(place: dict[str, Any]) -> str:
    """Return `line 3` or `row 3`, the place of a row in its file. An entry of rejected.jsonl can be given, too."""
    return f"line {place['line']}" if "line" in place else f"row {place['row']}"


def place_of_row(line: int, byte: int) -> dict[str, int]:
    """Return the place of a row in its file, from the columns of its pair in TOKENS."""
    return {"row": line} if byte < 0 else {"line": line, "byte": byte}


def entry(path: str, place: dict[str, int], why: Rejection, excerpt: str) -> str:
    """Return a line of rejected.jsonl."""
    return json.dumps(
        {"file": path, **place, "reason": why.reason, "kind": why.kind, "excerpt": excerpt}, ensure_ascii=False
    )


def write_lines(path: Path, lines: list[str]) -> dict[str, Any]:
    """Write lines of text; returns the file's entry in a manifest."""
    # Broken input may contain half of a surrogate pair, which UTF-8 cannot encode.
    return write_synced(path, "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace"))
