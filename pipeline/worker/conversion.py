"""A checkpoint -> DeepSpeed's universal form, for another number of workers: one file per parameter, not per rank.

For large models this takes longer than a collective may. So a process beside rank 0 converts, and the ranks keep
meeting until it ends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path

import torch.distributed as dist

from dpo.lm.whole_folder import write_atomically
from pipeline.errors import RunError
from pipeline.store.memory import available_bytes
from pipeline.worker.checkpoints import TAG

COMMAND = "from pipeline.worker.conversion import convert; convert()"
POLL_SECONDS = 5.0  # between two meetings of the ranks; far below the limit of a collective

Waiting = Callable[[], "str | None"]  # wait for a while: None: it goes on; "": it is done; else why it failed


def for_any_world_size(checkpoint: Path, status: Path) -> Path:
    """Convert a checkpoint, and say in the file `status` how far that is.

    Every rank must call this. The result is a folder next to the checkpoint; remove it after loading.

    Raises:
        RunError: the conversion failed. Raised on every rank.
    """
    folder = checkpoint.with_name(f"{checkpoint.name}.universal")
    beside: AbstractContextManager[Waiting] = nullcontext(lambda: None)
    if dist.get_rank() == 0:
        beside = _conversion(checkpoint, folder, status)
    problem: list[str | None] = [None]
    with beside as wait:
        while problem[0] is None:
            problem = [wait()]
            dist.broadcast_object_list(problem)
    if problem[0]:
        raise RunError(f"{checkpoint} could not be converted for another number of workers {problem[0]}")
    return folder


@contextmanager
def _conversion(checkpoint: Path, folder: Path, status: Path) -> Iterator[Waiting]:
    """Convert in a process that ends at the latest with this block, or with this process."""
    shutil.rmtree(folder, ignore_errors=True)
    title = f"converting checkpoint {checkpoint.name} for {dist.get_world_size()} workers"
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-u", "-c", COMMAND, *_arguments(checkpoint, folder)],
            # The group may be on GPUs; the conversion is files, and one thread in each of its processes.
            env={**os.environ, "PYTHONPATH": _path(), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,  # whose end is the converter's, too
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):

        def wait() -> str | None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            said = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")
            if process.returncode is None:
                with suppress(OSError):  # where the disk is full, the converter's own error is the one to report
                    write_atomically(status, f"{title}{progress(said)}\n")
                return None
            return _problem(process.returncode, said, folder)

        try:
            yield wait
        finally:
            status.unlink(missing_ok=True)


def _arguments(checkpoint: Path, folder: Path) -> list[str]:
    """The command line of DeepSpeed's converter: processes for all CPUs of this node, as far as memory goes."""
    shards = [path.stat().st_size for path in (checkpoint / TAG).glob("*_optim_states.pt")]
    held = 2 * max(shards, default=1)  # a process holds one shard, or one parameter of several, and a copy of its parts
    workers = max(1, min(len(os.sched_getaffinity(0)), available_bytes() // held))
    return [
        "--inject_missing_state",
        *("--num_extract_workers", str(max(1, min(workers, len(shards))))),
        *("--num_merge_workers", str(workers)),
        *("--input_folder", str(checkpoint / TAG)),
        *("--output_folder", str(folder / TAG)),
    ]


def _path() -> str:
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def _problem(code: int, said: str, folder: Path) -> str:
    """Why the converter failed, "" if it did not. What it has written is removed."""
    if code == 0:
        return ""
    free = shutil.disk_usage(folder.parent).free
    shutil.rmtree(folder, ignore_errors=True)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if code > 0 and lines else f"its process ended with status {code}"
    return f"({free:,} bytes are free there): {reason}"


def progress(said: str) -> str:
    """Part and count from the output of DeepSpeed's converter, such as ": merging, 40 of 291"; "" before the first."""
    parts = re.findall(r"\*\*\* [\d.]+ (\w+)([^*]*)", said)
    if not parts:
        return ""
    name, rest = parts[-1]
    counts = re.findall(r"(\d+)/(\d+) \[", rest)
    return f": {name.lower()}" + (", {} of {}".format(*counts[-1]) if counts else "")


def convert() -> None:
    """Run DeepSpeed's converter with the arguments of the command line."""
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    import pipeline.worker.zero  # noqa: F401  which imports DeepSpeed first, and less of it

    converter = import_module("deepspeed.checkpoint.ds_to_universal")
    converter.main(converter.parse_arguments())


def end_with_standard_input() -> None:
    """End this process and those it has started once standard input ends, which a process that died leaves behind."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
