"""Counts of prepared pairs -> what is said of them, and whether they suffice for a run."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from dpo.text.strings import IN_BOTH
from dpo.text.variants import variant_said
from pipeline.config import Data
from pipeline.data.noticed import PAST_TEMPLATE
from pipeline.data.rejections import NOT_A_FAULT, where
from pipeline.errors import InputError
from pipeline.place import Place

SHOWN = 5  # columns that nobody reads


def summary(counts: dict[str, Any]) -> dict[str, Any]:
    """The counts under their names in summary.json."""
    return {
        "pairs_read": counts["read"],
        "pairs_used": counts["train"] + counts["eval"],
        "pairs_rejected": counts["rejected"],
        "pairs_held_out": counts["eval"],
        "pairs_repeated": counts["duplicates"],
        "pairs_contradicting": counts["contradictions"],
        "rejected_by_kind": counts["reasons"],
        **({"columns_unread": counts["unread"]} if "unread" in counts else {}),
    }


def message(counts: dict[str, Any]) -> str:
    """The line that prepare prints at its end."""
    said = [f"{counts['train'] + counts['eval']:,} pairs"]
    said += [f"{counts['eval']:,} of them held out"] if counts["eval"] else []
    by_kind = ", ".join(f"{number:,} {kind}" for kind, number in counts["reasons"].items())
    said += [f"{counts['rejected']:,} rejected" + (f" ({by_kind})" if by_kind else "")]
    shown = {"apart": "with prompt and answer encoded apart", "truncated": "truncated"}
    shown |= {} if "duplicate" in counts["reasons"] else {"duplicates": "repeated"}
    if "contradiction" not in counts["reasons"]:
        shown["contradictions"] = "with the preference also turned round"
    said += [f"{counts[name]:,} {what}" for name, what in shown.items() if counts[name]]
    noticed = counts.get("noticed", {})
    said += [f"{noticed[IN_BOTH]:,} with the prompt cut from both answers"] if IN_BOTH in noticed else []
    columns = [f"{name}, {rows:,} rows" for name, rows in counts.get("unread", {}).items()]
    said += [f"columns unread: {'; '.join(columns[:SHOWN])}" + ("; ..." if columns[SHOWN:] else "")] if columns else []
    return ", ".join(said)


def note_template(place: Place, template: Any, counts: dict[str, Any]) -> None:
    """Say which template is used where it is not the tokenizer's own, and what goes past it."""
    variant = variant_said(template, counts["several_turns"], counts["chat"])
    if variant is not None:
        place.terminal.note(
            f"prepare   the chat template of {variant.model} is used in a variant for training: {variant.difference}. "
            "The export keeps the template itself."
        )
    past = counts.get("noticed", {}).get(PAST_TEMPLATE, 0)
    if past:
        place.terminal.note(
            f"prepare   {past:,} pairs are plain strings, and the tokenizer has a chat template, which is not applied "
            'to them. data.strings = "messages" reads them as messages; "as-is" says that they are meant so.'
        )


def note_damage(place: Place, reasons: dict[str, int], rejected: Path) -> None:
    """Name every damaged file: what follows the damage is in no count."""
    for entry in _first_of(rejected, "damaged file", reasons.get("damaged file", 0)):
        place.terminal.note(f"prepare   {entry['file']}: {entry['reason']} ({where(entry)}); what follows is lost")


def judge_counts(data: Data, counts: dict[str, Any], rejected: Path) -> None:
    """Stop where nothing, or too little, can be used."""
    bad = counts["rejected"] - sum(counts["reasons"].get(kind, 0) for kind in NOT_A_FAULT)
    if counts["train"] and bad <= data.max_rejected_fraction * counts["read"]:
        return
    kinds = [kind for kind in counts["reasons"] if kind not in NOT_A_FAULT or not counts["train"]][:3]
    first = [(kind, entry) for kind in kinds for entry in _first_of(rejected, kind, 1)]
    shown = "; ".join(f"{counts['reasons'][kind]:,} {kind}, as {_where(e)}: {e['reason']}" for kind, e in first)
    if not counts["read"]:
        raise InputError(f"data.train = {data.train!r} holds no rows.")
    if not counts["train"]:
        raise InputError(
            f"None of the {counts['read']:,} rows can be used. Reasons: "
            f"{shown or 'all are in data.eval'}. All rejected rows are listed in {rejected}."
        )
    too_long = " (rows that are too long: data.max_length, data.truncation)" if "too long" in kinds else ""
    raise InputError(
        f"{bad:,} of {counts['read']:,} rows cannot be used, more than data.max_rejected_fraction = "
        f"{data.max_rejected_fraction} allows: {shown}. All rejected rows are listed in "
        f"{rejected}; fix the rows, or raise data.max_rejected_fraction{too_long}."
    )


def _first_of(path: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """The first rejections of a kind."""
    with path.open(encoding="utf-8", newline="\n") as lines:  # only "\n" ends a line, not what a text holds
        entries = (json.loads(line) for line in lines)
        return list(islice((entry for entry in entries if entry["kind"] == kind), count))


def _where(entry: dict[str, Any]) -> str:
    return f"{Path(entry['file']).name} {where(entry)}"
