"""Checkpoints that are written while training goes on: the shards are copied to host memory, a thread writes them."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import nn

from dpo.lm.whole_folder import describe, sync
from pipeline.store.memory import available_bytes
from pipeline.store.parquet import write_synced
from pipeline.worker.zero import TorchCheckpointEngine

Copies = list[tuple[Path, "memoryview | None"]]  # None: the file is on the disk already


class CopyingEngine(TorchCheckpointEngine):
    """DeepSpeed's own way to write files, but into host memory. A file that has no room there is written at once."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.copies: Copies = []

    def save(self, state_dict: Any, path: str) -> None:
        """Serialize one file of a checkpoint; DeepSpeed calls this."""
        room = available_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # all ranks of a node copy now
        if _bytes_of(state_dict) > room // 2:
            super().save(state_dict, path)
            self.copies.append((Path(path), None))
            return
        content = io.BytesIO()
        torch.save(state_dict, content, _use_new_zipfile_serialization=self.zipfile_serialization)
        self.copies.append((Path(path), content.getbuffer()))


def _bytes_of(state: Any) -> int:
    """The memory that the tensors of a nested state take; some share it."""
    found: dict[int, int] = {}
    todo = [state]
    while todo:
        here = todo.pop()
        if isinstance(here, torch.Tensor):
            memory = here.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
        elif isinstance(here, dict):
            todo += here.values()
        elif isinstance(here, list | tuple):
            todo += here
    return sum(found.values())


def trained_alone(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the trained weights in a state, which a checkpoint keeps.

    DeepSpeed leaves frozen weights out, but not the scales that quantized ones keep beside them.
    """
    trained = {f"{prefix}{name}" for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in state.keys() - trained:
        del state[name]


def optimized_apart(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the trained weights out of a state: in float32, ZeRO's stages 1 and 2 write the same numbers themselves."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            state.pop(f"{prefix}{name}", None)


class Saving:
    """One rank's files of a checkpoint, on their way to the disk."""

    def __init__(self, folder: Path, copies: Copies):
        """Begin to write the copies in a thread, which lets go of each one once it is written."""
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}  # name -> size and digest
        self._problem = ""
        # A process that ends does not wait for it: a checkpoint without a manifest is none.
        self._thread = Thread(target=self._write, args=(copies,), daemon=True)
        self._thread.start()

    def problem(self, seconds: float) -> str | None:
        """Wait at most so long. None: the files are still being written; "": they are; else why they could not be."""
        self._thread.join(seconds)
        return None if self._thread.is_alive() else self._problem

    def _write(self, copies: Copies) -> None:
        try:
            while copies:
                path, content = copies.pop()
                self.files[str(path.relative_to(self.folder))] = _written(path, content)
        except OSError as error:
            self._problem = f"{unwritten(self.folder)}: {error.strerror}"


def _written(path: Path, content: memoryview | None) -> dict[str, Any]:
    """Write one file, if it is not there yet, and return its entry in the manifest."""
    if content is None:
        sync(path)
        return describe(path)
    return write_synced(path, content)


def unwritten(folder: Path) -> str:
    """The message for a checkpoint that could not be written."""
    free = shutil.disk_usage(folder.parent).free
    return f"no checkpoint could be written to {folder}, where {free:,} bytes are free"
