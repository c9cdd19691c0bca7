"""The cache of log-probs: one row a sequence, keyed by content, under the identity of the model that scored it.

A part is a Parquet file of sequences, named by the keys in it, so that a retry writes the same file again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.artifacts import write_atomically

KEY_BYTES = 16
PROMPT_BYTES = 4  # of the key: sequences of one prompt stand together when sorted, whatever order they came in
KEY = np.dtype((np.void, KEY_BYTES))
SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("logps", pa.list_(pa.float32()))])


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


class Cache:
    """Log-probs under one model's identity."""

    def __init__(self, folder: Path):
        self.folder = folder

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def keys(self) -> np.ndarray:
        """Every key that has a value, sorted, each once. Reads only the key columns."""
        found = [keys_of(pq.read_table(path, columns=["key"])["key"]) for path in self.parts()]
        return np.unique(np.concatenate(found)) if found else np.empty(0, KEY)

    def read(self, path: Path) -> Iterator[pa.Table]:
        """The rows of one part, a row group at a time."""
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)

    def write(self, keys: list[bytes], logps: list[np.ndarray]) -> None:
        """Write one part whole, or not at all."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        table = pa.table([[keys[i] for i in order], [logps[i] for i in order]], schema=SCHEMA)
        name = hashlib.blake2b(b"".join(keys[i] for i in order), digest_size=16).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{name}.{os.getpid()}"
        pq.write_table(table, beside, compression="zstd")
        beside.replace(self.folder / f"{name}.parquet")

    def describe(self, text: str) -> None:
        """Say beside the parts what the identity stands for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "identity.json", text)
