"""Files of preference pairs -> token parts in the workspace, and every row that could not be used."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from dpo.text.pairs import PreferencePair
from dpo.text.render import NO_TEMPLATE, TemplateMissing
from pipeline.errors import InputError
from pipeline.sources import DataFile, data_files, file_digest_of
from pipeline.stages.cluster import connect, each_item
from pipeline.stages.pieces import Piece, pairs_of, tokenize_piece
from pipeline.store.artifacts import Artifact, begin, commit, find
from pipeline.store.chunks import chunks
from pipeline.store.repeats import Counts, settle_repeats
from pipeline.store.rows import read_rows
from pipeline.store.tokens import SPLITS

if TYPE_CHECKING:
    from pipeline.place import Place  # with torch and models, which no task of this stage needs

FIRST_ROWS = 20
FORMAT = 5  # of the token parts; raised when the same input would give other bytes
# What is no fault of the rows does not count towards data.max_rejected_fraction.
EXPECTED = ("tie", "duplicate", "contradiction")


def prepare(place: Place, judge: bool = True) -> Artifact:
    """Tokenize `data.train` and `data.eval` into `tokens/<fingerprint>/{train,eval}/*.parquet`.

    Args:
        judge: whether too many rejected rows are an error; else they are only counted.

    Raises:
        InputError: a file is missing, no row can be used, or more of them are bad than data.max_rejected_fraction.
    """
    files = data_files(place)
    made_of = _made_of(place, files)
    folder = place.workspace / "tokens" / made_of["name"]
    tokens = find(folder, made_of)
    if tokens is None:
        _check_template(place, files)
        connect(place)
        tokens = _tokenize(place, files, begin(folder), made_of)
    _account(place, tokens)
    if judge:
        _judge(place, tokens.counts)
    return tokens


def _made_of(place: Place, files: list[DataFile]) -> dict[str, Any]:
    data, tokenizer, rules = place.config.data, place.tokenizer, place.rules
    backend = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    made_of = {
        "stage": "prepare",
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "files": [[file_digest_of(place, file), file.split, file.columns] for file in files],
        "tokenizer": [backend, tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template],
        "rules": rules._asdict(),
        "pairing": [data.pairing, data.margin],
        "repeats": [data.duplicates, data.contradictions],
        "eval_fraction": data.eval if isinstance(data.eval, float) else None,
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return {**made_of, "name": name}


def _check_template(place: Place, files: list[DataFile]) -> None:
    """Before Ray starts: messages need a template. The first rows of a file tell what it holds.

    Raises:
        TemplateMissing: there is none.
    """
    if place.tokenizer.chat_template is not None:
        return
    for file in files:
        for row in islice(read_rows(file.path), FIRST_ROWS):
            for pair in pairs_of(row, file.columns, ("best_worst", 0.0)):
                if isinstance(pair, PreferencePair) and pair.chat:
                    raise TemplateMissing(f"{Path(file.path).name}: {NO_TEMPLATE}")


def _tokenize(place: Place, files: list[DataFile], folder: Path, made_of: dict[str, Any]) -> Artifact:
    for name in (*SPLITS, "rejected"):
        (folder / name).mkdir()
    pieces = [
        Piece(number, at, file, chunk)
        for number, file in enumerate(files)
        for at, chunk in enumerate(chunks(file.path))
    ]
    data, total, began = place.config.data, Counts(), time.monotonic()
    options = {
        "pieces": pieces,
        "folder": str(folder),
        "tokenizer": place.tokenizer,
        "rules": place.rules,
        "pairing": (data.pairing, data.margin),
        "eval_fraction": made_of["eval_fraction"],
    }
    for part in each_item([{"piece": number} for number in range(len(pieces))], tokenize_piece, **options):
        total.add(json.loads(part["counts"]))
        place.peak_rss = max(place.peak_rss, part["peak_rss_bytes"])
        rate = total.counts["read"] / max(time.monotonic() - began, 1e-9)
        said = f"{total.counts['read']:,} pairs read, {total.counts['rejected']:,} rejected, {rate:,.0f} pairs/s"
        place.terminal.live("prepare", said)
    wishes = {"duplicate": data.duplicates, "contradiction": data.contradictions}
    drop = {kind for kind, wish in wishes.items() if wish == "drop"}
    for split in SPLITS:
        settle_repeats(folder, split, [file.path for file in files], total, drop)
    return commit(folder, made_of, {**total.counts, "reasons": dict(total.reasons.most_common())})


def _account(place: Place, tokens: Artifact) -> None:
    """Copy the rejections into the run's folder, and take note of the counts."""
    counts = tokens.counts
    with (place.run_dir / "rejected.jsonl").open("wb") as out:
        for path in tokens.paths("rejected/"):
            with path.open("rb") as lines:
                shutil.copyfileobj(lines, out)
    used = counts["train"] + counts["eval"]
    place.counts |= {
        "pairs_read": counts["read"],
        "pairs_used": used,
        "pairs_rejected": counts["rejected"],
        "pairs_held_out": counts["eval"],
        "pairs_repeated": counts["duplicates"],
        "pairs_contradicting": counts["contradictions"],
        "rejected_by_kind": counts["reasons"],
    }
    said = [f"{used:,} pairs"]
    said += [f"{counts['eval']:,} of them held out"] if counts["eval"] else []
    by_kind = ", ".join(f"{number:,} {kind}" for kind, number in counts["reasons"].items())
    said += [f"{counts['rejected']:,} rejected" + (f" ({by_kind})" if by_kind else "")]
    shown = {"apart": "with prompt and answer encoded apart", "truncated": "truncated"}
    shown |= {} if "duplicate" in counts["reasons"] else {"duplicates": "repeated"}
    if "contradiction" not in counts["reasons"]:
        shown["contradictions"] = "with the preference also turned round"
    said += [f"{counts[name]:,} {what}" for name, what in shown.items() if counts[name]]
    place.terminal.say(", ".join(said))
    if "damaged file" in counts["reasons"]:
        for entry in _first_of(place.run_dir / "rejected.jsonl", "damaged file", counts["reasons"]["damaged file"]):
            place.terminal.note(f"prepare   {entry['file']}: {entry['reason']} ({_at(entry)}); what follows is lost")


def _judge(place: Place, counts: dict[str, Any]) -> None:
    """Stop where nothing, or too little, can be used."""
    rejected = place.run_dir / "rejected.jsonl"
    bad = counts["rejected"] - sum(counts["reasons"].get(kind, 0) for kind in EXPECTED)
    if counts["train"] and bad <= place.config.data.max_rejected_fraction * counts["read"]:
        return
    kinds = [kind for kind in counts["reasons"] if kind not in EXPECTED or not counts["train"]][:3]
    first = [(kind, entry) for kind in kinds for entry in _first_of(rejected, kind, 1)]
    shown = "; ".join(f"{counts['reasons'][kind]:,} {kind}, as {_where(e)}: {e['reason']}" for kind, e in first)
    if not counts["read"]:
        raise InputError(f"data.train = {place.config.data.train!r} holds no rows.")
    if not counts["train"]:
        raise InputError(
            f"none of the {counts['read']:,} rows read can be trained on. They are: "
            f"{shown or 'all in data.eval'}. All are in {rejected}."
        )
    too_long = " (rows that are too long: data.max_length, data.truncation)" if "data.max_length" in shown else ""
    raise InputError(
        f"{bad:,} of {counts['read']:,} rows cannot be used, more than data.max_rejected_fraction = "
        f"{place.config.data.max_rejected_fraction} allows: {shown}. All are in "
        f"{rejected}; mend them, or raise the limit{too_long}."
    )


def _first_of(path: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """The first rejections of a kind."""
    with path.open(encoding="utf-8", newline="\n") as lines:  # only "\n" ends a line, not what a text holds
        entries = (json.loads(line) for line in lines)
        return list(islice((entry for entry in entries if entry["kind"] == kind), count))


def _where(entry: dict[str, Any]) -> str:
    return f"{Path(entry['file']).name} {_at(entry)}"


def _at(entry: dict[str, Any]) -> str:
    return f"line {entry['line']}" if "line" in entry else f"row {entry['row']}"
