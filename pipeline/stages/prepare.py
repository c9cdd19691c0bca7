"""Files of preference pairs -> token parts in the workspace, and every row that could not be used."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers

from dpo.text.encode import Encoder
from dpo.text.pairs import PreferencePair
from dpo.text.render import NO_TEMPLATE, TemplateMissing
from dpo.text.shapes import Reading
from dpo.text.strings import AS_IS, IN_BOTH, mended
from dpo.text.variants import training_variant, variant_said
from pipeline.cluster.items import Each
from pipeline.config import Data
from pipeline.data.chunks import chunks
from pipeline.data.noticed import PAST_TEMPLATE
from pipeline.data.pieces import Piece, found_in, tokenize_piece
from pipeline.data.plainness import FIRST_ROWS, reading_version
from pipeline.data.rejections import NOT_A_FAULT, Counts, where
from pipeline.data.repeats import settle_repeats
from pipeline.data.rows import read_rows
from pipeline.data.sources import DataFile, file_digest_of, left_out
from pipeline.data.tokenizer import rules
from pipeline.errors import InputError
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.preflight import Inputs
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact, Memo, begin, commit, find
from pipeline.store.tokens import SPLITS

SHOWN = 5  # columns that nobody reads
FORMAT_VERSION = 5  # of the token parts; raised when the same input would give other bytes
TEXT_VERSION = 2  # the same, where a chat template or a tokenizer that puts blanks before texts decides


def prepare(place: Place, inputs: Inputs, each: Each, judge: bool = True) -> Made[Artifact]:
    """Tokenize `data.train` and `data.eval` into `tokens/<fingerprint>/{train,eval}/*.parquet`.

    Args:
        judge: whether too many rejected rows are an error; else they are only counted.

    Raises:
        InputError: a file is missing, no row can be used, or more of them are bad than data.max_rejected_fraction.
    """
    made_of = _made_of(place, inputs)
    folder = place.workspace / "tokens" / made_of["name"]
    tokens, peak = find(folder, made_of), 0
    if tokens is None:
        _check_template(inputs, place.config.data)
        tokens, peak = _tokenize(place, inputs, each, begin(folder), made_of)
    for note in left_out(place.config.data):
        place.terminal.note(f"prepare   {note}")
    _note_template(place, inputs, tokens.counts)
    rejected = _collect_rejected(tokens, place.run_dir / run_files.REJECTED)
    _note_damage(place, tokens.counts["reasons"], rejected)
    if judge:
        _judge(place.config.data, tokens.counts, rejected)
    return Made(tokens, _message(tokens.counts), _summary(tokens.counts), peak)


def _made_of(place: Place, inputs: Inputs) -> dict[str, Any]:
    data, tokenizer, memo = place.config.data, inputs.tokenizer, place.memo
    backend = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    made_of = {
        "stage": "prepare",
        "format": FORMAT_VERSION,
        "tokenizers": tokenizers.__version__,
        "files": [_made_of_file(memo, file) for file in inputs.files],
        "tokenizer": [backend, tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template],
        "rules": rules(place.config)._asdict(),
        "pairing": [data.pairing, data.margin],
        "repeats": [data.duplicates, data.contradictions],
        "eval_fraction": data.eval if isinstance(data.eval, float) else None,
        # What is left at its default is no part of a fingerprint, so that older tokens are found.
        **({} if data.scored == "all" else {"scored": data.scored}),
        **({"ignore": sorted(data.ignore)} if data.ignore else {}),
        **reading_version(inputs.files),
    }
    if tokenizer.chat_template is not None or Encoder(tokenizer, cut=False).puts_blanks:
        made_of["text"] = TEXT_VERSION
    variant = training_variant(tokenizer.chat_template)
    if variant is not None:
        made_of["variant"] = hashlib.sha256(variant.template.encode()).hexdigest()
    if data.strings is not None:
        made_of["strings"] = data.strings
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return {**made_of, "name": name}


def _made_of_file(memo: Memo, file: DataFile) -> list[Any]:
    verdict = [] if file.verdict is None else [file.verdict]
    return [file_digest_of(memo, file), file.split, file.columns, *verdict]


def _check_template(inputs: Inputs, data: Data) -> None:
    """Before Ray starts: messages need a template. The first rows of a file tell what it holds.

    Args:
        strings: how pairs of strings are read.

    Raises:
        TemplateMissing: there is none.
    """
    if inputs.tokenizer.chat_template is not None:
        return
    for file in inputs.files:
        for row in islice(read_rows(file.path), FIRST_ROWS):
            for read in found_in(row, Reading(file.columns, file.verdict, tuple(data.ignore))).pairs:
                pair = mended(read, data.strings or AS_IS).pair
                if isinstance(pair, PreferencePair) and pair.chat:
                    raise TemplateMissing(f"{Path(file.path).name}: {NO_TEMPLATE}")


def _tokenize(place: Place, inputs: Inputs, each: Each, folder: Path, made_of: dict[str, Any]) -> tuple[Artifact, int]:
    """Make the artifact; returns it with the peak memory of the largest task."""
    data, has_template = place.config.data, inputs.tokenizer.chat_template is not None
    options = {
        "tokenizer": inputs.tokenizer,
        "rules": rules(place.config),
        "pairing": (data.pairing, data.margin),
        "eval_fraction": made_of["eval_fraction"],
        "scored": data.scored,
        "ignore": tuple(data.ignore),
        "strings": data.strings or (None if has_template else AS_IS),
    }
    total, peak = _written(place, inputs, each, folder, options)
    mixed = _mixed(total) if data.strings is None and has_template else ()
    if mixed:  # all rows of a file have one form, and only now it is known that some have messages
        options["together"] = mixed
        total, peak = _written(place, inputs, each, begin(folder), options)
    wishes = {"duplicate": data.duplicates, "contradiction": data.contradictions}
    drop = {kind for kind, wish in wishes.items() if wish == "drop"}
    for split in SPLITS:
        settle_repeats(folder, split, [file.path for file in inputs.files], total, drop)
    counts = {**total.counts, "reasons": dict(total.reasons.most_common())}
    more = {"unread": total.unread, "noticed": total.noticed}
    counts |= {name: dict(counter.most_common()) for name, counter in more.items() if counter}
    return commit(folder, made_of, counts), peak


def _written(place: Place, inputs: Inputs, each: Each, folder: Path, options: dict[str, Any]) -> tuple[Counts, int]:
    """Write all parts; returns their counts, and the peak memory of the largest task."""
    total, began, peak = Counts(), time.monotonic(), 0
    for peak_bytes in write_parts(each, inputs.files, folder, options, total):
        peak = max(peak, peak_bytes)
        rate = total.counts["read"] / max(time.monotonic() - began, 1e-9)
        said = f"{total.counts['read']:,} pairs read, {total.counts['rejected']:,} rejected, {rate:,.0f} pairs/s"
        place.terminal.live("prepare", said)
    return total, peak


def _mixed(total: Counts) -> tuple[int, ...]:
    """The numbers of the files that have both messages and strings."""
    files = sorted({int(form.split()[0]) for form in total.forms})
    return tuple(file for file in files if total.forms[f"{file} chat"] and total.forms[f"{file} strings"])


def write_parts(
    each: Each,
    files: list[DataFile],
    folder: Path,
    options: dict[str, Any],
    total: Counts,
    chunk_bytes: int | None = None,
) -> Iterator[int]:
    """Write the token parts and rejections of files below a folder; adds up their counts in `total`.

    Args:
        options: further keywords of `tokenize_piece`.
        chunk_bytes: about how much of a file one task reads; None: what suits its kind.

    Yields:
        the peak memory, in bytes, of the task that wrote the next part.
    """
    for name in (*SPLITS, "rejected"):
        (folder / name).mkdir(parents=True)
    pieces = [
        Piece(number, at, file, chunk)
        for number, file in enumerate(files)
        for at, chunk in enumerate(chunks(file.path, chunk_bytes))
    ]
    items = [{"piece": number} for number in range(len(pieces))]
    for part in each(items, tokenize_piece, pieces=pieces, folder=str(folder), **options):
        total.add(json.loads(part["counts"]))
        yield part["peak_bytes"]


def _collect_rejected(tokens: Artifact, path: Path) -> Path:
    """Copy the rejections into the run's folder."""
    with path.open("wb") as out:
        for part in tokens.paths("rejected/"):
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, out)
    return path


def _summary(counts: dict[str, Any]) -> dict[str, Any]:
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


def _message(counts: dict[str, Any]) -> str:
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


def _note_template(place: Place, inputs: Inputs, counts: dict[str, Any]) -> None:
    """Say which template is used where it is not the tokenizer's own, and what goes past it."""
    variant = variant_said(inputs.tokenizer.chat_template, counts["several_turns"], counts["chat"])
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


def _note_damage(place: Place, reasons: dict[str, int], rejected: Path) -> None:
    """Name every damaged file: what follows the damage is in no count."""
    for entry in _first_of(rejected, "damaged file", reasons.get("damaged file", 0)):
        place.terminal.note(f"prepare   {entry['file']}: {entry['reason']} ({where(entry)}); what follows is lost")


def _judge(data: Data, counts: dict[str, Any], rejected: Path) -> None:
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
