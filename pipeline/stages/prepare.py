"""Files of preference pairs -> token parts in the workspace, and every row that could not be used."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from dpo.pairs import PreferencePair, Rejection, TokenizedPair, read_pairs
from dpo.tokenize import tokenize_pair
from pipeline.errors import InputError
from pipeline.stages.cluster import connect, each_item
from pipeline.store.artifacts import Artifact, begin, commit, find
from pipeline.store.files import list_files
from pipeline.store.rows import Row, read_rows
from pipeline.store.tokens import COPY_BITS, TOKENS, row_id, token_row

if TYPE_CHECKING:
    from pipeline.place import Place  # with torch and models, which no task of this stage needs

FORMAT = 2  # of the token parts; raised when the same input would give other bytes
PART_ROWS = 4096
SPLITS = ("train", "eval")
COPIES = 1 << COPY_BITS  # pairs of one row


def prepare(place: Place) -> Artifact:
    """Tokenize `data.train` and `data.eval` into `tokens/<fingerprint>/{train,eval}/*.parquet`.

    Raises:
        InputError: a file is missing, no row can be used, or more of them are bad than data.max_rejected_fraction.
    """
    items = data_files(place)
    made_of = _made_of(place, items)
    folder = place.workspace / "tokens" / made_of["name"]
    tokens = find(folder, made_of)
    if tokens is None:
        connect(place)
        tokens = _tokenize(place, items, begin(folder), made_of)
    _account(place, tokens)
    return tokens


def data_files(place: Place) -> list[dict[str, Any]]:
    """The files to read, each with the split that its rows belong to (None: by a hash of the prompt).

    Raises:
        InputError: one is missing or of no known kind, or the held-out file is a training file.
    """
    data = place.config.data
    train = [data.train] if isinstance(data.train, str) else data.train
    sources = [(path, "data.train", None if isinstance(data.eval, float) else "train") for path in train]
    if isinstance(data.eval, str):
        sources.append((data.eval, "data.eval", "eval"))
    files = [(file, split) for path, key, split in sources for file in list_files(path, key)]
    trained = [file for file, split in files if split == "train"]
    for file in (file for file, split in files if split == "eval"):
        if any(file.samefile(other) for other in trained):
            raise InputError(
                f"data.eval = {str(file)!r} is also a training file, so nothing would be held out. "
                "Name another file, or a fraction, for example data.eval=0.05."
            )
    return [{"file": number, "path": str(path), "split": split} for number, (path, split) in enumerate(files)]


def _made_of(place: Place, items: list[dict[str, Any]]) -> dict[str, Any]:
    data, tokenizer = place.config.data, place.tokenizer
    backend = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    made_of = {
        "stage": "prepare",
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "files": [[place.memo.digest(Path(item["path"])), item["split"]] for item in items],
        "tokenizer": [backend, tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template],
        "max_length": data.max_length,
        "truncation": data.truncation,
        "pairing": [data.pairing, data.margin],
        "eval_fraction": data.eval if isinstance(data.eval, float) else None,
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return {**made_of, "name": name}


def _tokenize(place: Place, items: list[dict[str, Any]], folder: Path, made_of: dict[str, Any]) -> Artifact:
    for name in (*SPLITS, "rejected"):
        (folder / name).mkdir()
    total: Counter[str] = Counter()
    data = place.config.data
    options = {
        "folder": str(folder),
        "tokenizer": place.tokenizer,
        "max_length": data.max_length,
        "truncation": data.truncation,
        "pairing": (data.pairing, data.margin),
        "eval_fraction": made_of["eval_fraction"],
    }
    for part in each_item(items, tokenize_file, **options):
        total.update(part)
        place.terminal.live("prepare", f"{total['read']:,} pairs read, {total['rejected']:,} rejected")
    return commit(folder, made_of, {**dict.fromkeys(COUNTS, 0), **total})


COUNTS = ("read", "train", "eval", "rejected", "apart", "truncated", "tokens")


def tokenize_file(
    item: dict[str, Any],
    folder: str,
    tokenizer: Any,
    max_length: int,
    truncation: str,
    pairing: tuple[str, float],
    eval_fraction: float | None,
) -> Iterator[pa.Table]:
    """Read one file, write its token parts and rejections, yield the counts of each part."""
    writer = _Writer(Path(folder), item)
    for row in read_rows(Path(item["path"])):
        pairs = [Rejection(row.fault)] if row.fault is not None else read_pairs(row.value, *pairing)
        if len(pairs) > COPIES:
            pairs = [Rejection(f"its answers make {len(pairs):,} pairs, more than {COPIES:,}; set data.margin")]
        for copy, pair in enumerate(pairs):
            if isinstance(pair, Rejection):
                writer.add(row, copy, pair, None)
                continue
            held_out = eval_fraction is not None and _prompt_share(pair) < eval_fraction
            split = item["split"] or ("eval" if held_out else "train")
            writer.add(row, copy, tokenize_pair(tokenizer, pair, max_length, truncation), split)
        if writer.full():
            yield writer.flush()
    yield writer.flush()


def _prompt_share(pair: PreferencePair) -> float:
    """Where a prompt falls between 0 and 1; all pairs of a prompt fall together, whatever else is in the file."""
    text = json.dumps(pair.prompt, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


class _Writer:
    """Collects rows of one file and writes them in parts named by where they begin: a retry writes the same files."""

    def __init__(self, folder: Path, item: dict[str, Any]):
        self.folder, self.item = folder, item
        self.part = 0
        self._clear()

    def _clear(self) -> None:
        self.rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
        self.rejected: list[str] = []
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)

    def add(self, row: Row, copy: int, pair: TokenizedPair | Rejection, split: str | None) -> None:
        """One of the pairs that a row holds, or why it is not used."""
        self.counts["read"] += 1
        if isinstance(pair, Rejection):
            self.counts["rejected"] += 1
            entry = {"file": self.item["path"], **row.place, "reason": pair.reason, "excerpt": row.excerpt}
            self.rejected.append(json.dumps(entry, ensure_ascii=False))
            return
        assert split is not None, "a row that was read has a split"
        self.rows[split].append(token_row(row_id(self.item["file"], row.number, copy), pair))
        self.counts[split] += 1
        self.counts["apart"] += pair.apart
        self.counts["truncated"] += pair.truncated
        self.counts["tokens"] += 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)

    def full(self) -> bool:
        return self.counts["read"] >= PART_ROWS

    def flush(self) -> pa.Table:
        name = f"{self.item['file']:06}-{self.part:06}"
        for split, rows in self.rows.items():
            if rows:
                table = pa.Table.from_pylist(rows, schema=TOKENS)
                pq.write_table(table, self.folder / split / f"{name}.parquet", compression="zstd")
        if self.rejected:
            text = "".join(f"{line}\n" for line in self.rejected)
            # Broken input may hold half of a surrogate pair, which UTF-8 cannot say.
            (self.folder / "rejected" / f"{name}.jsonl").write_text(text, encoding="utf-8", errors="replace")
        counts = pa.Table.from_pylist([self.counts])
        self.part += 1
        self._clear()
        return counts


def _account(place: Place, tokens: Artifact) -> None:
    """Copy the rejections into the run's folder, and stop if there are too many."""
    counts = tokens.counts
    examples: list[dict[str, Any]] = []
    with (place.run_dir / "rejected.jsonl").open("w", encoding="utf-8") as out:
        for path in tokens.paths("rejected/"):
            with path.open(encoding="utf-8", newline="\n") as lines:  # only "\n" ends a line, not what a text holds
                for line in lines:
                    out.write(line)
                    if len(examples) < 3:
                        examples.append(json.loads(line))
    used = counts["train"] + counts["eval"]
    place.counts |= {
        "pairs_read": counts["read"],
        "pairs_used": used,
        "pairs_rejected": counts["rejected"],
        "pairs_held_out": counts["eval"],
    }
    shown = "; ".join(f"{_where(e)}: {e['reason']}" for e in examples)
    if counts["train"] == 0:
        if not counts["read"]:
            raise InputError(f"data.train = {place.config.data.train!r} holds no rows.")
        raise InputError(
            f"none of the {counts['read']:,} rows read can be trained on. The first: "
            f"{shown or 'all fell into data.eval'}. All are in {place.run_dir / 'rejected.jsonl'}."
        )
    too_long = " (rows that are too long: data.max_length, data.truncation)" if "data.max_length" in shown else ""
    if counts["rejected"] > place.config.data.max_rejected_fraction * counts["read"]:
        raise InputError(
            f"{counts['rejected']:,} of {counts['read']:,} rows cannot be used, more than data.max_rejected_fraction = "
            f"{place.config.data.max_rejected_fraction} allows. The first: {shown}. All are in "
            f"{place.run_dir / 'rejected.jsonl'}; mend them, or raise the limit{too_long}."
        )
    held_out = f", {counts['eval']:,} of them held out" if counts["eval"] else ""
    apart = f", {counts['apart']:,} with prompt and answer encoded apart" if counts["apart"] else ""
    cut = f", {counts['truncated']:,} truncated" if counts["truncated"] else ""
    place.terminal.say(f"{used:,} pairs{held_out}, {counts['rejected']:,} rejected{apart}{cut}")


def _where(entry: dict[str, Any]) -> str:
    place = f"line {entry['line']}" if "line" in entry else f"row {entry['row']}"
    return f"{Path(entry['file']).name} {place}"
