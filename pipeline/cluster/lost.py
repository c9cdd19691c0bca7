"""A process that died -> one sentence: what ended it, and how the run goes on."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError
from ray.train import UserCallback

from pipeline.errors import first_line
from pipeline.place import Place
from pipeline.report.terminal import beside
from pipeline.store.artifacts import MANIFEST
from pipeline.store.memory import kernel_kills, limit_bytes
from pipeline.worker.job import Job

# Ray tells node and bytes in the text of its errors alone; its GB are 2**30 bytes.
USED = re.compile(r"\(IP: ([^,)]+).*?\) was ([\d.]+)GB used / ([\d.]+)GB")
OF_PROCESS = re.compile(r"actual memory used=([\d.]+)GB")
WHERE = ("cause", "__cause__", "_base_exc", "health_check_failure")
LOOK_SECONDS = 1.0


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what lies below it; Ray keeps causes in different places."""
    seen: list[BaseException] = []
    todo: list[Any] = [error]
    while todo:
        here = todo.pop(0)
        if isinstance(here, BaseException) and here not in seen:
            seen.append(here)
            yield here
            todo += [getattr(here, name, None) for name in WHERE]
            todo += list(getattr(here, "worker_failures", {}).values())


class Kernel(NamedTuple):
    """How many processes the kernel of a machine had ended for lack of memory."""

    host: str
    kills: int

    @classmethod
    def now(cls) -> Kernel:
        return cls(socket.gethostname(), kernel_kills())


def why_lost(error: BaseException, before: Kernel) -> str | None:
    """Say what ended a process of Ray; None where none was ended from outside. `before`: when the work began."""
    found = [cause for cause in causes(error) if isinstance(cause, RayError)]
    for cause in found:
        used = USED.search(str(cause))
        if used is not None or isinstance(cause, OutOfMemoryError):
            return _of_memory(str(cause), used)
    if any(isinstance(cause, NodeDiedError) for cause in found):
        return "a node was lost"
    if any(isinstance(cause, RayActorError | WorkerCrashedError) for cause in found):
        return _of_kernel(before, Kernel.now())
    return None


def _of_kernel(before: Kernel, now: Kernel) -> str:
    """Ray does not know what ended a process; the kernel of this machine counts those that it ends."""
    if before.host != now.host or now.kills <= before.kills:
        return "a process was killed by the system, most often for lack of memory (the kernel's log tells)"
    limit = limit_bytes() / 2**30
    return f"memory ran out on node {now.host}: the kernel ended a process, as all {limit:.2f} GiB were in use"


def _of_memory(text: str, used: re.Match[str] | None) -> str:
    said = "memory ran out"
    if used is not None:
        said += f" on node {used[1]}: {used[2]} of {used[3]} GiB were in use"
    taken = [float(found) for found in OF_PROCESS.findall(text)]
    more = f", of them {max(taken):g} GiB by the process that Ray ended" if taken else ", and Ray ended a process"
    return said + more


class Losses(UserCallback):
    """Notes in Ray Train's controller why workers were lost, for the terminal of the driver."""

    def __init__(self, note: str, status: Path, checkpoints: str, most: int):
        """
        Args:
            note: the file that the driver looks for.
            status: where the workers said what they were doing.
            checkpoints: where the training goes on from.
            most: how many tries there are.
        """
        self.note, self.status, self.checkpoints, self.most = note, status, checkpoints, most
        self.lost, self.before = 0, Kernel.now()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray calls this behind each lost group."""
        self.lost += 1
        if self.lost >= self.most:
            return  # the run ends, and says why
        errors = list(worker_exceptions.values())
        known = next(filter(None, (why_lost(error, self.before) for error in errors)), None)
        self.before = Kernel.now()
        why = known or first_line(errors[0]).rstrip(".")
        saved = [path.parent.name for path in Path(self.checkpoints).glob(f"*/{MANIFEST}")] if self.checkpoints else []
        step = max((int(name[-8:]) for name in saved), default=0)
        self.status.unlink(missing_ok=True)  # which is not true any more
        said = f"a worker was lost: {why}; going on from step {step:,}, attempt {self.lost + 1} of {self.most}"
        Path(self.note).write_text(said, encoding="utf-8")


def lost_note(job: Job) -> str:
    """The file in which the controller tells of a loss."""
    return f"{job.note}.lost"


def telling(place: Place, stage: str, job: Job) -> AbstractContextManager[None]:
    """Print what is noted of losses, while the body runs."""
    return beside(partial(_tell, place, stage, Path(lost_note(job))))


def _tell(place: Place, stage: str, note: Path, stop: threading.Event) -> None:
    while not stop.wait(LOOK_SECONDS):
        with suppress(FileNotFoundError):
            said = note.read_text(encoding="utf-8")
            note.unlink()
            place.terminal.note(f"{stage:<9} {said}")
