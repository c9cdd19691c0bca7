"""The cache of log-probs: one row per sequence, keyed by content, in a folder per model that scored them.

A part is a Parquet file of sequences sorted by key. Its name contains the first and last key, so that a look-up skips
parts that cannot match; a digest of all keys, so that a retry replaces the part that it repeats; and a digest of the
file, so that damage is detected. Any number of writers may add parts. If two parts hold the same key, either is valid.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpo.lm.whole_folder import to_json
from pipeline.errors import RunError
from pipeline.store.folder import Folder

KEY_BYTES = 16
PROMPT_BYTES = 4  # first bytes of the key, which depend on the prompt alone: sorting puts equal prompts together
KEY = np.dtype((np.void, KEY_BYTES))
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("logps", pa.list_(pa.float32()))])
PART = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}-([0-9a-f]{16})\.parquet")  # see write_sorted
DAMAGED = "damaged"  # folder for damaged parts
MADE_WITH = "made_with.json"  # the versions of libraries that parts were scored with
READERS = 4  # parts read at the same time; reading and digesting release the interpreter's lock


def sequence_key(prompt_ids: np.ndarray, completion_ids: np.ndarray, mask: np.ndarray) -> bytes:
    """Return the key of a sequence: a digest of its prompt, its completion and its mask of scored tokens."""
    prompt = hashlib.blake2b(prompt_ids.astype("<i4").tobytes(), digest_size=KEY_BYTES)
    whole = hashlib.blake2b(prompt.digest(), digest_size=KEY_BYTES - PROMPT_BYTES)
    whole.update(completion_ids.astype("<i4").tobytes())
    whole.update(np.packbits(mask.astype(bool)).tobytes())
    return prompt.digest()[:PROMPT_BYTES] + whole.digest()


def keys_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Convert a key column to a numpy array of KEY, which compares and sorts byte by byte."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(array) == 0:
        return np.empty(0, KEY)
    data = np.frombuffer(array.buffers()[1], np.uint8)
    start = array.offset * KEY_BYTES
    return data[start : start + len(array) * KEY_BYTES].view(KEY)


def match(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the keys that also occur in `among` (sorted, unique): their positions in `keys` and in `among`."""
    if not len(among):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    rows = np.flatnonzero(among[at] == keys)
    return rows, at[rows]


class DamagedPart(RunError):
    """A part whose content does not match its checksum."""


class GonePart(RunError):
    """A part that a compaction has removed since it was listed. Its rows are in another part."""


class Found(NamedTuple):
    """The result of a look-up."""

    have: np.ndarray  # bool for each wanted key: it has a value
    damaged: list[str]  # damaged parts, which were moved away


class Cache:
    """The log-probs of one model."""

    def __init__(self, where: str):
        self.folder = Folder(where)

    @property
    def where(self) -> str:
        return self.folder.where

    def parts(self) -> list[str]:
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Return the size of each part in bytes."""
        return {name: size for name, size in self.folder.sizes().items() if PART.fullmatch(name)}

    def find(self, wanted: np.ndarray) -> Found:
        """Find out which of the wanted keys (sorted, unique) have a value.

        Reads and verifies every part that may hold one. A damaged part is moved away, and its rows count as missing.
        Needs memory for the wanted keys and for a few parts, for any number of cached rows.
        """
        while True:
            try:
                return self._find(wanted)
            except GonePart:  # its rows are in another part now, so list the parts again
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
        """Return the parts whose range contains one of the wanted keys, which are sorted."""
        return [name for name in self.parts() if _between(name, wanted)]

    def _positions(self, name: str, wanted: np.ndarray) -> np.ndarray | None:
        """Return the positions of a part's keys in `wanted`, or None for a damaged part."""
        try:
            return match(keys_of(self.open(name).read(columns=["key"])["key"]), wanted)[1]
        except DamagedPart:
            return None

    def open(self, name: str) -> pq.ParquetFile:
        """Read a part and verify its checksum.

        Raises:
            DamagedPart: the checksum does not match.
            GonePart: the part no longer exists.
        """
        try:
            content = self.folder.read(name)
        except FileNotFoundError:
            raise GonePart(f"{self.where}/{name} was removed by a compaction; run the same command again") from None
        if _digest(content) != _stated(name)[4]:
            raise DamagedPart(
                f"{self.where}/{name} is damaged (its checksum does not match); run the same command to rescore it"
            )
        return pq.ParquetFile(pa.BufferReader(content))

    def read(self, name: str) -> Iterator[pa.Table]:
        """Yield the rows of one part, one row group at a time."""
        file = self.open(name)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)

    def write(self, keys: list[bytes], logps: list[np.ndarray]) -> str:
        """Write one part atomically; returns its name."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return self.write_sorted(pa.table([[keys[i] for i in order], [logps[i] for i in order]], schema=SCHEMA))

    def write_sorted(self, table: pa.Table) -> str:
        """Write rows that are sorted by key as one part; returns its name.

        The name has the first and last key, the number of rows, and the digests of the keys and of the file.
        """
        keys = keys_of(table["key"])
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        low, high = (keys[at].tobytes()[:PROMPT_BYTES].hex() for at in (0, -1))
        name = f"{low}-{high}-{len(keys)}-{_digest(keys.tobytes())}-{_digest(buffer.getvalue())}.parquet"
        self.folder.write(name, buffer.getvalue())
        return name

    def values(self, wanted: np.ndarray) -> dict[bytes, np.ndarray]:
        """Return the log-probs of the wanted keys (sorted, unique) that are cached, as arrays."""
        return {row["key"]: np.asarray(row["logps"], np.float32) for row in self.select(wanted).to_pylist()}

    def select(self, wanted: np.ndarray) -> pa.Table:
        """Return all rows with the wanted keys (sorted, unique). A key in several parts gives several rows."""
        found = [SCHEMA.empty_table()]
        for name in self.may_hold(wanted):
            found += [table.take(match(keys_of(table["key"]), wanted)[0]) for table in self.read(name)]
        return pa.concat_tables(found)

    def rows(self) -> int:
        """Count the rows, from the names of the parts. A key in several parts counts several times."""
        return sum(int(_stated(name)[3]) for name in self.parts())

    def bytes(self) -> int:
        return sum(self.sizes().values())

    def describe(self, meaning: dict[str, object]) -> None:
        """Record next to the parts what the identity was computed from."""
        self.folder.write("identity.json", (to_json(meaning, indent=2) + "\n").encode())

    def scored_with(self, versions: dict[str, str]) -> None:
        """Record next to the parts with which versions of libraries some of them were scored."""
        known = self.makers()
        if versions not in known:
            self.folder.write(MADE_WITH, (json.dumps([*known, versions], indent=1) + "\n").encode())

    def makers(self) -> list[dict[str, str]]:
        """Return the versions of libraries that parts were scored with, as far as they are recorded."""
        found = self._note(MADE_WITH)
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def meaning(self) -> dict[str, Any]:
        """Return what the identity was computed from; empty where that cannot be read."""
        found = self._note("identity.json")
        return found if isinstance(found, dict) else {}

    def _note(self, name: str) -> Any:
        """Return the content of a small JSON file, None where it is missing or damaged."""
        try:
            return json.loads(self.folder.read(name))
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def used(self, role: str) -> None:
        """Record that the log-probs were used now, and in which role: as a reference or as an evaluated policy."""
        self.folder.write("used.json", json.dumps({"time": time.time(), "as": role}).encode())

    def last_use(self) -> tuple[float, str] | None:
        """Return the time of the last use, in seconds since 1970, and the role; None if no use is recorded."""
        noted = self._note("used.json")
        if not isinstance(noted, dict) or type(noted.get("time")) not in (int, float):
            return None
        return float(noted["time"]), str(noted.get("as", ""))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _stated(name: str) -> re.Match[str]:
    """Parse the name of a part."""
    stated = PART.fullmatch(name)
    assert stated is not None, "only what `parts` lists is opened"
    return stated


def _between(name: str, wanted: np.ndarray) -> bool:
    """Tell whether the range in a part's name contains one of the wanted keys."""
    low, high = (bytes.fromhex(text) for text in _stated(name).group(1, 2))
    first = np.frombuffer(low.ljust(KEY_BYTES, b"\0"), KEY)
    last = np.frombuffer(high.ljust(KEY_BYTES, b"\xff"), KEY)
    return bool(np.searchsorted(wanted, first, "left")[0] < np.searchsorted(wanted, last, "right")[0])
