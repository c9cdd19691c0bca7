"""The rows of metrics.jsonl, each once and in order -> the trackers of a run, also across a kill and a restart."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo.lm.whole_folder import read_json, to_json, write_atomically
from pipeline.report.trackers import TRACKERS, Guarded, ends_within, flat, new_identity
from pipeline.store import run_files
from pipeline.store.logs import read_steps

if TYPE_CHECKING:
    from pipeline.config import Config

LOOK_SECONDS = 2.0
END_SECONDS = 120.0  # that the end of a run waits for clients that send
TRAIN, EVAL = "train", "eval"
ARTIFACTS = (run_files.CONFIG, run_files.SUMMARY, run_files.CURVES, run_files.REPORT)


@contextmanager
def tracked(config: Config, run_dir: Path, note: Callable[[str], None], anew: bool) -> Iterator[None]:
    """Send the metrics of a run to `report.trackers` while the body runs, and its files behind it.

    Args:
        note: says what failed.
        anew: whether the run begins; else the trackers' runs of before are continued.
    """
    names = [name for name in config.report.trackers if name in TRACKERS]
    state = run_dir / run_files.TRACKERS
    if anew:
        state.unlink(missing_ok=True)
    if not names:
        yield
        return
    sending = Sending(names, config, run_dir, note)
    sending.thread.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        sending.failed = failed
        sending.stop.set()
        if not ends_within(END_SECONDS, sending.thread):
            note(f"{', '.join(names)}: not everything was sent within {END_SECONDS:g} s; metrics.jsonl has all")


class Sending:
    """A thread that sends rows as they come. A client that waits does not hold up training."""

    def __init__(self, names: list[str], config: Config, run_dir: Path, note: Callable[[str], None]):
        self.run_dir, self.state = run_dir, run_dir / run_files.TRACKERS
        self.kept: dict[str, dict[str, Any]] = read_json(self.state) or {}
        self.guarded = [Guarded(name, note) for name in names]
        self.name, self.settings = config.run.name, flat(json.loads(config.model_dump_json()))
        self.stop, self.failed = threading.Event(), False
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        for one in self.guarded:
            mine = self.kept.setdefault(one.name, {"id": new_identity(), TRAIN: 0, EVAL: 0})
            self._keep()
            one.tracker = one.do(lambda one=one, mine=mine: self._open(one.name, mine["id"]))
        seen = None
        while not self.stop.wait(LOOK_SECONDS):
            seen = self._send_new(seen)
        self._send_new(None)
        files = [path for path in (self.run_dir / name for name in ARTIFACTS) if path.exists()]
        summary = read_json(self.run_dir / run_files.SUMMARY) or {}
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        for one in self.guarded:
            tracker = one.tracker
            if tracker is not None:
                one.do(lambda tracker=tracker: tracker.finish(files, numbers, self.failed))

    def _open(self, name: str, identity: str) -> Any:
        return TRACKERS[name](identity, self.name, self.settings, self.run_dir)

    def _send_new(self, seen: tuple[int, int] | None) -> tuple[int, int] | None:
        """Send what was not sent yet; returns what the file looks like."""
        path = self.run_dir / run_files.METRICS
        try:
            looks = path.stat().st_mtime_ns, path.stat().st_size
        except FileNotFoundError:
            return None
        if looks == seen:
            return seen
        rows, _ = read_steps(path)
        for one in self.guarded:
            if one.tracker is not None:
                self._send(one, rows)
        return looks

    def _send(self, one: Guarded, rows: list[dict[str, Any]]) -> None:
        sent = self.kept[one.name]
        for row in rows:
            kind = EVAL if any(key.startswith("eval/") for key in row) else TRAIN
            tracker = one.tracker
            if row["step"] <= sent[kind] or tracker is None:
                continue
            one.do(lambda tracker=tracker, row=row: tracker.log(row["step"], named(row)))
            if one.tracker is not None:
                sent[kind] = row["step"]
        self._keep()

    def _keep(self) -> None:
        write_atomically(self.state, to_json(self.kept, indent=1) + "\n")


def named(row: dict[str, Any]) -> dict[str, float]:
    """A row's numbers under the names that TRL's trackers have: train/loss, train/rewards/chosen, eval/loss."""
    found = {}
    for key, value in row.items():
        if key != "step" and isinstance(value, int | float) and math.isfinite(value):
            found[key if key.startswith(("eval/", "perf/")) else f"train/{key}"] = float(value)
    return found
