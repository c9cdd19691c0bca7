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

import pyarrow.parquet as pq
import tokenizers

from dpo.text.encode import Encoder
from dpo.text.pairs import PreferencePair
from dpo.text.render import NO_TEMPLATE, TemplateMissing
from dpo.text.shapes import Reading
from dpo.text.strings import AS_IS, mended
from dpo.text.variants import training_variant
from pipeline.cluster.items import Each
from pipeline.config import Data
from pipeline.data.chunks import chunks
from pipeline.data.pieces import Piece, found_in, tokenize_piece
from pipeline.data.plainness import FIRST_ROWS, reading_version
from pipeline.data.rejections import Counts
from pipeline.data.repeats import settle_repeats
from pipeline.data.rows import read_rows
from pipeline.data.sources import DataFile, file_digest_of, left_out
from pipeline.data.tokenizer import rules
from pipeline.errors import InputError, RunError
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.counted import judge_counts, message, note_damage, note_template, summary
from pipeline.stages.preflight import Inputs
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact, begin, commit, take_up
from pipeline.store.memo import Memo
from pipeline.store.tokens import SPLITS

FORMAT_VERSION = 5  # of the token parts; raised when the same input would give other bytes
TEXT_VERSION = 2  # the same, where a chat template or a tokenizer that puts blanks before texts decides


def prepare(place: Place, inputs: Inputs, each: Each, judge: bool = True) -> Made[Artifact]:
    """Tokenize `data.train` and `data.eval` into `tokens/<fingerprint>/{train,eval}/*.parquet`.

    Args:
        judge: whether too many rejected rows are an error; else they are only counted.

    Raises:
        InputError: a file is missing, no row can be used, or more of them are bad than data.max_rejected_fraction.
    """
    made_of = made_of_tokens(place, inputs)
    folder = place.workspace / "tokens" / made_of["name"]
    tokens, peak = take_up(folder, made_of, place.terminal.note), 0
    if tokens is None:
        _check_template(inputs, place.config.data)
        tokens, peak = _tokenize(place, inputs, each, folder, made_of)
    for note in left_out(place.config.data, place.workspace, place.run_dir):
        place.terminal.note(f"prepare   {note}")
    note_template(place, inputs.tokenizer.chat_template, tokens.counts)
    rejected = _collect_rejected(tokens, place.run_dir / run_files.REJECTED)
    note_damage(place, tokens.counts["reasons"], rejected)
    if judge:
        judge_counts(place.config.data, tokens.counts, rejected)
    return Made(tokens, message(tokens.counts), summary(tokens.counts), peak)


def made_of_tokens(place: Place, inputs: Inputs) -> dict[str, Any]:
    """All that decides which tokens are made; `name` is that of their folder."""
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
    if place.config.run.trial is not None:
        made_of["trial"] = place.config.run.trial
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return {**made_of, "name": name}


def _made_of_file(memo: Memo, file: DataFile) -> list[Any]:
    verdict = [] if file.verdict is None else [file.verdict]
    return [file_digest_of(memo, file), file.split, file.columns, *verdict]


def _check_template(inputs: Inputs, data: Data) -> None:
    """Before Ray starts: messages need a template. The first rows of a file tell what it holds.

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
    data, own, has_template = place.config.data, begin(folder), inputs.tokenizer.chat_template is not None
    options = {
        "tokenizer": inputs.tokenizer,
        "rules": rules(place.config),
        "pairing": (data.pairing, data.margin),
        "eval_fraction": made_of["eval_fraction"],
        "scored": data.scored,
        "ignore": tuple(data.ignore),
        "strings": data.strings or (None if has_template else AS_IS),
    }
    total, peak = _written(place, inputs, each, own, options)
    mixed = _mixed(total) if data.strings is None and has_template else ()
    if mixed:  # all rows of a file have one form, and only now it is known that some have messages
        shutil.rmtree(own)
        own, options["together"] = begin(folder), mixed
        total, peak = _written(place, inputs, each, own, options)
    wishes = {"duplicate": data.duplicates, "contradiction": data.contradictions}
    drop = {kind for kind, wish in wishes.items() if wish == "drop"}
    for split in SPLITS:
        settle_repeats(own, split, [file.path for file in inputs.files], total, drop)
    _refuse_changed(place, inputs, made_of)
    counts = {**total.counts, "reasons": dict(total.reasons.most_common())}
    more = {"unread": total.unread, "noticed": total.noticed}
    counts |= {name: dict(counter.most_common()) for name, counter in more.items() if counter}
    _compare_rows(own, counts)
    return commit(own, folder, made_of, counts, total.files), peak


def _written(place: Place, inputs: Inputs, each: Each, folder: Path, options: dict[str, Any]) -> tuple[Counts, int]:
    """Write all parts; returns their counts, and the peak memory of the largest task."""
    total, began, peak, done = Counts(), time.monotonic(), 0, 0
    pieces = pieces_of(inputs.files, place.config.run.trial)
    for peak_bytes, last in write_parts(each, pieces, folder, options, total):
        peak, done = max(peak, peak_bytes), done + last
        rate = total.counts["read"] / max(time.monotonic() - began, 1e-9)
        said = f"{total.counts['read']:,} pairs read, {total.counts['rejected']:,} rejected, {rate:,.0f} pairs/s"
        place.terminal.live("prepare", said, *((done, len(pieces)) if len(pieces) > 1 else ()))
    return total, peak


def _mixed(total: Counts) -> tuple[int, ...]:
    """The numbers of the files that have both messages and strings."""
    files = sorted({int(form.split()[0]) for form in total.forms})
    return tuple(file for file in files if total.forms[f"{file} chat"] and total.forms[f"{file} strings"])


def _refuse_changed(place: Place, inputs: Inputs, made_of: dict[str, Any]) -> None:
    """Raise an InputError where a file is not any more what the artifact was begun for: some of it was read since."""
    for file, (digest, *_) in zip(inputs.files, made_of["files"], strict=True):
        if file_digest_of(place.memo, file) != digest:
            raise InputError(
                f"{file.path} was changed while it was read, so nothing was made of it. Wait until it is written, and "
                "run the same command again."
            )


def _compare_rows(folder: Path, counts: dict[str, Any]) -> None:
    """Raise a RunError where the parts have other rows than the tasks have counted."""
    for split in SPLITS:
        rows = sum(pq.read_metadata(path).num_rows for path in (folder / split).glob("*.parquet"))
        if rows != counts[split]:
            raise RunError(f"{folder / split} has {rows:,} pairs, and {counts[split]:,} were counted. Run it again")


def write_parts(
    each: Each, pieces: list[Piece], folder: Path, options: dict[str, Any], total: Counts
) -> Iterator[tuple[int, bool]]:
    """Write the token parts and rejections of pieces of files below a folder; adds up their counts in `total`.

    Args:
        options: further keywords of `tokenize_piece`.

    Yields:
        the peak memory, in bytes, of the task that wrote the next part, and whether it was the last of its piece.
    """
    for name in (*SPLITS, "rejected"):
        (folder / name).mkdir(parents=True)
    items = [{"piece": number} for number in range(len(pieces))]
    for part in each(items, tokenize_piece, pieces=pieces, folder=str(folder), **options):
        total.add(json.loads(part["counts"]))
        yield part["peak_bytes"], part["last"]


def pieces_of(files: list[DataFile], trial: int | None, chunk_bytes: int | None = None) -> list[Piece]:
    """The piece of a file that each task reads. A trial takes its share of the pairs from the beginning of each file.

    Args:
        chunk_bytes: about how much of a file one task reads; None: what suits its kind.
    """
    every = [
        Piece(number, at, file, chunk)
        for number, file in enumerate(files)
        for at, chunk in enumerate(chunks(file.path, chunk_bytes))
    ]
    if trial is None:
        return every
    found = []
    for of_eval in (False, True):
        first = [piece for piece in every if piece.number == 0 and (piece.source.split == "eval") == of_eval]
        shares = [trial // len(first) + (place < trial % len(first)) for place in range(len(first))]
        found += [piece._replace(most=share) for piece, share in zip(first, shares, strict=True) if share]
    return found


def _collect_rejected(tokens: Artifact, path: Path) -> Path:
    """Copy the rejections into the run's folder."""
    with path.open("wb") as out:
        for part in tokens.paths("rejected/"):
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, out)
    return path
