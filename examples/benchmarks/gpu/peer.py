"""Part 8: the same pairs as TRL trains them, with its reference precomputed and at its best micro-batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from examples.benchmarks.compare import WARM_UP, speed_up, take_turns
from examples.benchmarks.contestants import Ours, Task, Trl
from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import BUDGET

TIMES = 3.0  # as fast, at least
OURS = "ours"


def measure(setting: Setting) -> Report:
    """Take turns with TRL at several micro-batches; the ratio is that to its fastest."""
    if not find_spec("trl"):
        print('TRL is not installed, so part 8 is left out: pip install -e ".[bench]"')
        return Report([Row("TRL is not installed", None, "")])
    name = next(iter(setting.models))
    sizes = (2,) if setting.tiny else (8,) if setting.brief else (4, 8, 16)
    count, pairs, budget = (1, 2, 64) if setting.tiny else (setting.fewer(10), 64, BUDGET)
    steps = [setting.pairs(name, pairs, seed=200 + number) for number in range(WARM_UP + count)]
    words = setting.models[name]["vocab_size"]
    task = Task(setting.folder(name), steps, words, "bfloat16", 1, setting.device.type)
    rows: list[Row] = []
    ratios: list[float] = []
    for size in sizes:  # the largest last: a process that did not fit leaves the other behind
        theirs = f"TRL, {size} pairs a micro-batch"
        try:
            with _of_no_group():
                measured = take_turns({theirs: Trl(size), OURS: Ours(budget=budget)}, task)
        except EOFError:
            rows.append(Row(f"{theirs}: it failed (its traceback is above)", None, "pairs/s"))
            break
        seconds = {"systems": {system: {"seconds": found} for system, (found, _) in measured.items()}}
        ratios.append(speed_up(seconds, OURS, theirs) or 0.0)
        for system, (found, peak) in measured.items():
            beside = "" if system != OURS else f" beside {size} pairs of TRL's"
            rows.append(Row(f"{system}{beside}: speed", count * pairs / sum(found), "pairs/s"))
            rows.append(Row(f"{system}{beside}: peak memory", peak / 2**30, "GiB"))
    look = "part 4: what keeps our own steps from their target"
    target = TIMES if setting.on_gpu else None
    rows.append(Row(f"{name}: ours over TRL's fastest", min(ratios, default=None), "times", target, look=look))
    return Report(rows)


@contextmanager
def _of_no_group() -> Iterator[None]:
    """Let processes that start meanwhile not take themselves for ranks of a group that this process may be in."""
    before = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ |= before
