"""The logs of training: metrics.jsonl, audit.jsonl, samples.jsonl, TensorBoard."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dpo.lm.whole_folder import to_json, write_atomically
from pipeline.store import run_files
from pipeline.store.logs import read_steps


class MetricLog:
    """metrics.jsonl (one object per step) and, on request, TensorBoard files. Rank 0 writes them."""

    def __init__(self, folder: Path, tensorboard: bool, after_step: int):
        """Open for appending after a step; see `cut_back`."""
        self.path = folder / run_files.METRICS
        cut_back(self.path, after_step)
        self.folder, self.tensorboard, self.after_step = folder, tensorboard, after_step

    @cached_property
    def board(self) -> Any:
        """The writer of TensorBoard files, imported at the first step; None if they are not requested."""
        if not self.tensorboard:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.after_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Add the metrics of a step."""
        append_line(self.path, row)
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write buffered TensorBoard metrics to disk."""
        if self.board is not None:
            self.board.close()


def cut_back(path: Path, after_step: int) -> None:
    """Remove the rows of a log after a step, which belong to an interrupted attempt.

    Lines that cannot be read are set aside.
    """
    rows, damaged = read_steps(path)
    if damaged:
        with path.with_name(run_files.UNREADABLE).open("a", encoding="utf-8") as aside:
            aside.writelines(f"{path.name}: {line}\n" for line in damaged)
    if path.exists():
        kept = [row for row in rows if row["step"] <= after_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))


def say(logs: str, text: str) -> None:
    """Tell the terminal what the workers are doing, on rank 0, where that is not yet a step. "" takes it back."""
    if dist.get_rank() != 0:
        return
    path = Path(logs) / run_files.STATUS
    with suppress(OSError):  # a full disk is reported where something is lost by it
        if text:
            write_atomically(path, f"{text}\n")
        else:
            path.unlink(missing_ok=True)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line in one write, so that lines of several ranks never mix.

    Numbers that are not finite, which JSON does not have, become null.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (to_json(row) + "\n").encode())
    finally:
        os.close(descriptor)
