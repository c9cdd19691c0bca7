"""Part 5: reference log-probs, as the pool's actors compute and write them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from examples.benchmarks.gpu.report import Report, Row
from examples.benchmarks.gpu.setting import Setting
from examples.benchmarks.gpu.targets import BUDGET, scoring_seconds, work_of
from examples.benchmarks.workload import Pair
from pipeline.models.device import Device
from pipeline.models.scorer import Scorer
from pipeline.store.cache import sequence_key
from pipeline.store.needed import SEQUENCES

SEQUENCES_IN_ALL, AT_ONCE = 20_000, 512


def measure(setting: Setting) -> Report:
    """Score pairs with each model, into a cache."""
    rows = []
    for name in setting.models:
        count, size = (16, 8) if setting.tiny else (setting.fewer(SEQUENCES_IN_ALL), AT_ONCE)
        pairs = setting.pairs(name, count // 2 + size // 2, seed=3)
        parts = [_table(pairs[start : start + size // 2]) for start in range(0, len(pairs), size // 2)]
        device = Device(setting.device.type, None)
        cache = setting.work / f"cache-{name}"
        scorer = Scorer(str(setting.folder(name)), str(cache), "bfloat16", 0, BUDGET, True, device)
        scorer(parts[0])  # to warm up
        seconds = setting.seconds(lambda scorer=scorer, parts=parts: _in_turns(scorer, parts[1:]))
        scored = pairs[size // 2 :]
        target = None
        if setting.card is not None:
            target = 2 * len(scored) / scoring_seconds(setting.shape(name), work_of(scored), setting.card)
        look = "the layout of batches on the CPU (py-spy dump of this process), then a trace of part 4"
        rows.append(Row(f"{name}: sequences", 2 * len(scored) / seconds, "sequences/s", target, look=look))
        refused = "" if scorer.unshared is None else scorer.unshared
        rows.append(Row(f"{name}: prompts that are not shared", float(bool(refused)), "", 0, True, refused))
    return Report(rows)


def _in_turns(scorer: Scorer, parts: list[pa.Table]) -> None:
    """Score as an actor of the pool does: one table is written while the next one is computed."""
    with ThreadPoolExecutor(2) as threads:
        for answer in threads.map(scorer, parts):
            assert answer.num_rows == 1


def _table(pairs: list[Pair]) -> pa.Table:
    """Rows of SEQUENCES: both completions of every pair."""
    rows = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            prompt, ids, mask = np.array(pair.prompt), np.array(completion), np.ones(len(completion), bool)
            rows.append(
                {"key": sequence_key(prompt, ids, mask), "prompt_ids": prompt, "completion_ids": ids, "mask": mask}
            )
    return pa.Table.from_pylist(rows, schema=SEQUENCES)
