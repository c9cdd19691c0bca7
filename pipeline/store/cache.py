"""The cache of log-probs: one row a sequence, keyed by content, under the identity of the model that scored it.

A part is a Parquet file of sequences sorted by key. Its name says between which keys they lie, so that a look-up passes
over parts that cannot help; which keys they are, so that a retry replaces what it repeats; and the digest of the file,
so that damage shows. Parts are only ever added, by any number of writers; where two hold a key, either will do.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.store.folder import Folder

KEY_BYTES = 16
PROMPT_BYTES = 4  # of the key: sequences of one prompt stand together when sorted, whatever order they came in
KEY = np.dtype((np.void, KEY_BYTES))
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("logps", pa.list_(pa.float32()))])
PART = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}-([0-9a-f]{16})\.parquet")  # see write_sorted
DAMAGED = "damaged"  # the folder of parts that were set aside
READERS = 4  # parts read at a time; reading and digesting run outside the interpreter's lock


def sequence_key(prompt_ids: np.ndarray, completion_ids: np.ndarray, mask: np.ndarray) -> bytes:
    """The content of one sequence: prompt, completion and which of its tokens are scored."""
    prompt = hashlib.blake2b(prompt_ids.astype("<i4").tobytes(), digest_size=KEY_BYTES)
    whole = hashlib.blake2b(prompt.digest(), digest_size=KEY_BYTES - PROMPT_BYTES)
    whole.update(completion_ids.astype("<i4").tobytes())
    whole.update(np.packbits(mask.astype(bool)).tobytes())
    return prompt.digest()[:PROMPT_BYTES] + whole.digest()


def keys_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A key column -> numpy array of KEY, comparable and sortable byte by byte."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(array) == 0:
        return np.empty(0, KEY)
    data = np.frombuffer(array.buffers()[1], np.uint8)
    start = array.offset * KEY_BYTES
    return data[start : start + len(array) * KEY_BYTES].view(KEY)


def match(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of some keys stand among others, sorted and each once: their places in `keys`, and in `among`."""
    if not len(among):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    rows = np.flatnonzero(among[at] == keys)
    return rows, at[rows]


class DamagedPart(RunError):
    """A part that does not hold what was written."""


class GonePart(RunError):
    """A part that was compacted into another since it was listed."""


class Found(NamedTuple):
    """What a look-up found."""

    have: np.ndarray  # bool, of each wanted key
    damaged: list[str]  # that were set aside


class Cache:
    """Log-probs under one model's identity."""

    def __init__(self, where: str):
        self.folder = Folder(where)

    @property
    def where(self) -> str:
        return self.folder.where

    def parts(self) -> list[str]:
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each part."""
        return {name: size for name, size in self.folder.sizes().items() if PART.fullmatch(name)}

    def find(self, wanted: np.ndarray) -> Found:
        """Which of some keys, sorted and each once, have a value.

        Reads and verifies every part that may hold one; a damaged one is set aside, and its rows are missing. Takes
        memory for the wanted keys and for a few parts, however many rows there are.
        """
        while True:
            try:
                return self._find(wanted)
            except GonePart:  # its rows are in another part now
                continue

    def _find(self, wanted: np.ndarray) -> Found:
        have, damaged = np.zeros(len(wanted), bool), []
        candidates = self.may_hold(wanted)
        with ThreadPoolExecutor(READERS) as pool:
            for name, at in zip(candidates, pool.map(lambda n: self._positions(n, wanted), candidates), strict=True):
                if at is None:
                    self.folder.move(name, DAMAGED)
                    damaged.append(name)
                else:
                    have[at] = True
        return Found(have, damaged)

    def may_hold(self, wanted: np.ndarray) -> list[str]:
        """The parts whose range holds some of these keys, which are sorted."""
        return [name for name in self.parts() if _between(name, wanted)]

    def _positions(self, name: str, wanted: np.ndarray) -> np.ndarray | None:
        """Where a part's keys stand among the wanted ones; None for a damaged part."""
        try:
            return match(keys_of(self.open(name).read(columns=["key"])["key"]), wanted)[1]
        except DamagedPart:
            return None

    def open(self, name: str) -> pq.ParquetFile:
        """A part, verified.

        Raises:
            DamagedPart: it is not what was written.
            GonePart: it is not there any more.
        """
        try:
            content = self.folder.read(name)
        except FileNotFoundError:
            raise GonePart(f"{self.where}/{name} was compacted meanwhile; run the same command again") from None
        if _digest(content) != _stated(name)[4]:
            raise DamagedPart(f"{self.where}/{name} is not what was written; run the same command to score it again")
        return pq.ParquetFile(pa.BufferReader(content))

    def read(self, name: str) -> Iterator[pa.Table]:
        """The rows of one part, a row group at a time."""
        file = self.open(name)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)

    def write(self, keys: list[bytes], logps: list[np.ndarray]) -> str:
        """Write one part whole, or not at all; returns its name."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return self.write_sorted(pa.table([[keys[i] for i in order], [logps[i] for i in order]], schema=SCHEMA))

    def write_sorted(self, table: pa.Table) -> str:
        """The same for rows that are sorted by key. The name: first and last key, rows, digests of keys and of file."""
        keys = keys_of(table["key"])
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        low, high = (keys[at].tobytes()[:PROMPT_BYTES].hex() for at in (0, -1))
        name = f"{low}-{high}-{len(keys)}-{_digest(keys.tobytes())}-{_digest(buffer.getvalue())}.parquet"
        self.folder.write(name, buffer.getvalue())
        return name

    def values(self, wanted: np.ndarray) -> dict[bytes, np.ndarray]:
        """The log-probs of a few keys, sorted; those that are not there are left out."""
        return {row["key"]: np.asarray(row["logps"], np.float32) for row in self.select(wanted).to_pylist()}

    def select(self, wanted: np.ndarray) -> pa.Table:
        """All rows with these keys, sorted and each once; of a key that several parts hold, several rows."""
        found = [SCHEMA.empty_table()]
        for name in self.may_hold(wanted):
            found += [table.take(match(keys_of(table["key"]), wanted)[0]) for table in self.read(name)]
        return pa.concat_tables(found)

    def rows(self) -> int:
        """As the names of the parts say; what several of them hold counts several times."""
        return sum(int(_stated(name)[3]) for name in self.parts())

    def bytes(self) -> int:
        return sum(self.sizes().values())

    def describe(self, meaning: dict[str, object]) -> None:
        """Say beside the parts what the identity stands for."""
        self.folder.write("identity.json", (json.dumps(meaning, indent=2) + "\n").encode())

    def used(self, role: str) -> None:
        """Note that the model's log-probs were used now, and as whose."""
        self.folder.write("used.json", json.dumps({"time": time.time(), "as": role}).encode())

    def last_use(self) -> tuple[float, str] | None:
        """Seconds since 1970, and the role; None where nobody noted it."""
        if "used.json" not in self.folder.names():
            return None
        noted = json.loads(self.folder.read("used.json"))
        return float(noted["time"]), noted.get("as", "")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _stated(name: str) -> re.Match[str]:
    """What a part's name says."""
    stated = PART.fullmatch(name)
    assert stated is not None, "only what `parts` lists is opened"
    return stated


def _between(name: str, wanted: np.ndarray) -> bool:
    """Whether the range in a part's name holds one of the wanted keys."""
    low, high = (bytes.fromhex(text) for text in _stated(name).group(1, 2))
    first = np.frombuffer(low.ljust(KEY_BYTES, b"\0"), KEY)
    last = np.frombuffer(high.ljust(KEY_BYTES, b"\xff"), KEY)
    return bool(np.searchsorted(wanted, first, "left")[0] < np.searchsorted(wanted, last, "right")[0])
