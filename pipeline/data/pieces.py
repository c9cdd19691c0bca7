"""One chunk of a file of rows -> its token parts and its rejections: what one task of `prepare` does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dpo.text.encode import Encoder
from dpo.text.pairs import Found, PreferencePair, TokenizedPair, read_row
from dpo.text.rejection import Rejection
from dpo.text.shapes import Reading
from dpo.text.strings import MESSAGES, mended
from dpo.text.tokenize import Rules, tokenize_pairs
from pipeline.data.chunks import Chunk
from pipeline.data.noticed import PAST_TEMPLATE, noticed_in
from pipeline.data.rejections import Counts, entry, write_lines
from pipeline.data.rows import Row, read_rows
from pipeline.data.sources import DataFile
from pipeline.store.memory import peak_bytes
from pipeline.store.parquet import write_parquet
from pipeline.store.tokens import COPY_BITS, SPLITS, row_id, token_row, token_table

PART_ROWS, PART_TOKENS = 4096, 8_000_000  # whichever comes first: few long rows are as much as many short ones
BATCH_PAIRS, BATCH_CHARACTERS = 256, 1_000_000  # encoded at once
SHOWN = 3  # rows of each thing that is noticed in a part
COPIES = 1 << COPY_BITS  # pairs of one row


class Piece(NamedTuple):
    """The input of one task: a chunk of a file."""

    file: int
    number: int  # of the chunk in its file
    source: DataFile
    chunk: Chunk
    most: int | None = None  # pairs that a trial uses of the chunk; None: all


def tokenize_piece(
    item: dict[str, Any],
    pieces: list[Piece],
    folder: str,
    tokenizer: Any,
    rules: Rules,
    pairing: tuple[str, float],
    eval_fraction: float | None,
    scored: str = "all",
    ignore: tuple[str, ...] = (),
    strings: str | None = None,
    together: tuple[int, ...] = (),
) -> Iterator[pa.Table]:
    """Read one chunk of a file, write its token parts and rejections, yield the counts and files of each part.

    Args:
        strings: how pairs of strings are read, see `dpo.text.strings.mended`.
        together: files whose rows are partly messages, so that their strings are read as messages, too.
    """
    piece = pieces[item["piece"]]
    encoder = Encoder(tokenizer)
    joined = piece.file in together
    writer = _Writer(Path(folder), piece, eval_fraction, tokenizer, past=strings is None and not joined)
    source, (way, margin) = piece.source, pairing
    reading = Reading(source.columns, source.verdict, ignore, scored, way, margin, COPIES)
    for batch in _batches(piece, reading, MESSAGES if joined else strings):
        pairs = [one.pair for one in batch if isinstance(one.pair, PreferencePair)]
        encoded = iter(tokenize_pairs(tokenizer, pairs, rules, encoder))
        for one in batch:
            writer.add(one, one.pair if isinstance(one.pair, Rejection) else next(encoded))
        if writer.full():
            yield writer.flush()
        if writer.enough:
            break
    yield writer.flush(last=True)


class Item(NamedTuple):
    """One of the pairs that a row holds, or why it is not used."""

    row: Row
    copy: int  # which of the row's pairs
    pair: PreferencePair | Rejection
    unread: tuple[str, ...]  # columns that nobody reads, with the first pair of the row
    noticed: tuple[str, ...]  # what is odd about it


def _batches(piece: Piece, reading: Reading, strings: str | None) -> Iterator[list[Item]]:
    """The pairs of a chunk, as many at a time as are encoded at once."""
    batch: list[Item] = []
    characters = 0
    for row in read_rows(piece.source.path, piece.chunk):
        found = found_in(row, reading)
        for copy, read in enumerate(found.pairs):
            pair, noticed = mended(read, strings)
            if isinstance(pair, PreferencePair):
                noticed += tuple(noticed_in(row.value, pair))
                characters += sum(len(side) if isinstance(side, str) else len(str(side)) for side in pair[:3])
            batch.append(Item(row._replace(value=None), copy, pair, found.unread if copy == 0 else (), noticed))
        if len(batch) >= BATCH_PAIRS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def found_in(row: Row, reading: Reading) -> Found:
    """Return the pairs of a row, or why there is none, and the columns that nobody reads."""
    if row.fault is not None:
        return Found([Rejection(row.fault, row.kind or "no pair")])
    return read_row(row.value, reading)


def _texts(pair: PreferencePair) -> Iterator[str]:
    for side in pair[:3]:
        if isinstance(side, str):
            yield side
        else:
            yield from (message["content"] for message in side)


def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern for the names of special tokens: text that spells one out turns into that token."""
    names = {str(token) for token in tokenizer.all_special_tokens}
    return re.compile("|".join(map(re.escape, sorted(names)))) if names else None


def _prompt_share(pair: PreferencePair) -> float:
    """Where a prompt falls between 0 and 1; all pairs of a prompt fall together, whatever else is in the file."""
    text = json.dumps(pair.prompt, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


class _Writer:
    """Collects rows of one chunk and writes them in parts named by where they begin: a retry writes the same files."""

    def __init__(self, folder: Path, piece: Piece, eval_fraction: float | None, tokenizer: Any, past: bool):
        self.folder, self.piece, self.eval_fraction = folder, piece, eval_fraction
        self.past = past and tokenizer.chat_template is not None  # strings go past the template, and nobody asked so
        self.control = _control_tokens(tokenizer)
        self.part = 0
        self.used: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self._clear()

    def _clear(self) -> None:
        self.rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
        self.rejected: list[str] = []
        self.noticed: dict[str, list[str]] = {}
        self.total = Counts()

    def add(self, item: Item, pair: TokenizedPair | Rejection) -> None:
        """One of the pairs that a row holds, or why it is not used."""
        if self.enough:
            return
        row, copy, read, unread, noticed = item
        self.total.unread.update(unread)
        self.total.counts["read"] += 1
        if isinstance(read, PreferencePair):
            self._count_shape(read)
        if isinstance(read, Rejection) or isinstance(pair, Rejection):
            why = read if isinstance(read, Rejection) else pair
            assert isinstance(why, Rejection)
            self.total.reject(why.kind)
            self.rejected.append(entry(self.piece.source.path, row.place, why, row.excerpt))
            return
        held_out = self.eval_fraction is not None and _prompt_share(read) < self.eval_fraction
        split = self.piece.source.split or ("eval" if held_out else "train")
        line, byte = row.place.get("line", row.place.get("row", 0)), row.place.get("byte", -1)
        self.used[split] += 1
        if self.piece.most is not None and self.used[split] > self.piece.most:
            return  # while a trial still looks for a pair to hold out
        control = self.control is not None and any(map(self.control.search, _texts(read)))
        tokens = token_row(row_id(self.piece.file, row.number, copy), pair, line, byte, control)
        self.rows[split].append(tokens)
        self.total.use(split, tokens)
        self._notice(row, (*noticed, PAST_TEMPLATE) if self.past and not read.chat and not control else noticed)

    def _notice(self, row: Row, names: tuple[str, ...]) -> None:
        """Count what is odd about a pair, and keep the first rows of each name."""
        for name in names:
            self.total.noticed[name] += 1
            shown = self.noticed.setdefault(name, [])
            if len(shown) < SHOWN:
                shown.append(entry(self.piece.source.path, row.place, Rejection(name, name), row.excerpt))

    def _count_shape(self, pair: PreferencePair) -> None:
        counts = self.total.counts
        counts["chat" if pair.chat else "strings"] += 1
        self.total.forms[f"{self.piece.file} {'chat' if pair.chat else 'strings'}"] += 1
        messages = [message for side in pair[:3] if not isinstance(side, str) for message in side]
        counts["system"] += any(message["role"] == "system" for message in messages)
        counts["calls"] += any("tool_calls" in message for message in messages)
        counts["tools"] += pair.tools is not None
        counts["several_turns"] += pair.chat and (len(pair.chosen) > 1 or len(pair.rejected) > 1)

    @property
    def enough(self) -> bool:
        """Whether a trial has the pairs of this file: those that it uses and, of a fraction, one that is held out."""
        train, held_out = self.used["train"], self.used["eval"]
        most = self.piece.most
        if most is None:
            return False
        if self.piece.source.split is not None:
            return self.used[self.piece.source.split] >= most
        return train >= most and (held_out > 0 or self.eval_fraction is None)

    def full(self) -> bool:
        return self.total.counts["read"] >= PART_ROWS or self.total.counts["tokens"] >= PART_TOKENS

    def flush(self, last: bool = False) -> pa.Table:
        name = f"{self.piece.file:06}-{self.piece.number:06}-{self.part:06}"
        files = {}
        for split, rows in self.rows.items():
            if rows:
                part = f"{split}/{name}.parquet"
                files[part] = write_parquet(self.folder / part, token_table(rows))
        if self.rejected:
            part = f"rejected/{name}.jsonl"
            files[part] = write_lines(self.folder / part, self.rejected)
        if self.noticed:
            part = f"noticed/{name}.jsonl"
            (self.folder / "noticed").mkdir(exist_ok=True)
            files[part] = write_lines(self.folder / part, [line for of in self.noticed.values() for line in of])
        counts = json.dumps({**self.total.plain(), "files": files})
        self.part += 1
        self._clear()
        return pa.table({"counts": [counts], "peak_bytes": [peak_bytes()], "last": [last]})
