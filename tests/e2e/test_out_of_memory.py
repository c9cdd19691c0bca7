"""A worker runs out of memory in the middle of a run: the run ends once, with one sentence, and says what to lower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.at_import import write_change
from tests.e2e.running import ROOT, ray_align, rows
from tests.e2e.test_by_trainers import CONFIG

pytestmark = pytest.mark.ray

# In the third step of rank 1, the backward pass finds no memory.
LACK = """
def change(module):
    backward = module.Engine.backward

    def failing(engine, loss, last):
        if engine.engine.global_steps == 2 and module.dist.get_rank() == 1:
            with open({trace!r}, "a") as trace:
                trace.write("rank 1\\n")
            raise module.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        backward(engine, loss, last)

    module.Engine.backward = failing
"""


def test_a_step_without_memory_ends_the_run_once(tmp_path: Path) -> None:
    pairs = [{"prompt": f"say word {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}."} for i in range(160)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (tmp_path / "my.toml").write_text(CONFIG.replace('by = "trainers"\n', ""), encoding="utf-8")
    trace = tmp_path / "trace"
    write_change(tmp_path, "pipeline.worker.engine", LACK.replace("{trace!r}", repr(str(trace))))
    done = ray_align("run", str(tmp_path / "my.toml"), path=f"{tmp_path}:{ROOT}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert trace.read_text() == "rank 1\n"  # it was not tried again
    assert done.stderr.startswith("ray-align: Memory ran out in step 3, on rank 1 of 2. Lower micro_batch_tokens")
    assert done.stderr.count("\n") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "loss" in row] == [1, 2]
