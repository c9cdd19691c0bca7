"""Parquet files whose pages carry checksums, and which their writer vouches for by a digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError


def write_parquet(path: Path, table: pa.Table, **options: Any) -> dict[str, Any]:
    """Write a table to the disk, past every buffer; returns the file's entry in a manifest."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return write_synced(path, buffer.getbuffer())


def write_synced(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    """Write a file to the disk, past every buffer; returns its entry in a manifest."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def row_groups(path: Path | str) -> Iterator[pa.Table]:
    """Yield the row groups of a file; pages with a checksum are compared with it.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}). Run the same command again, and it is made again") from None
