"""The bytes that the collectives of an optimizer step reduce and gather, at the stages of ZeRO, counted on gloo."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpo.step import Baseline
from pipeline.worker import loop
from pipeline.worker.engine import Engine
from pipeline.worker.objectives import Rows
from pipeline.worker.rank import Rank
from tests.pipeline.worker.small_run import cached, make_job, make_rows, tables

pytestmark = pytest.mark.group
REDUCED = ("c10d::allreduce_", "c10d::reduce_", "c10d::reduce_scatter_", "c10d::_reduce_scatter_base_")


class Sent(TorchDispatchMode):
    """Counts the bytes of whole tensors that collectives reduce, and of those that they gather."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().startswith("c10d::"):
            kind = "reduced" if function.name() in REDUCED else "gathered"
            tensors = [t for t in tree_leaves(args[0]) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            self.bytes[kind] += sum(t.nbytes for t in tensors)
        return function(*args, **(kwargs or {}))


def bytes_of_a_step(job, budgets):
    """The number of weights, and for several sizes of micro-batch their number in a step and the bytes by kind."""
    engine = Engine(job, torch.device("cpu"))
    weights = sum(p.numel() for p in engine.trainable)
    step = Rows(tables(cached(Path(job.model), make_rows(24, 0)), [24])[0])
    found = []
    for budget in budgets:
        of_budget = replace(job, micro_batch_tokens=budget)
        me = Rank(of_budget, engine, None, dist.get_rank(), 2, 1, lambda: False, Baseline(), None)
        with Sent() as sent:
            loop._optimizer_step(me, step, 1)
        found.append((len(loop._share(me, me.objective, step)), dict(sent.bytes)))
    engine.close()
    return weights, found


@pytest.mark.parametrize(("stage", "each"), [(1, False), (2, True)])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_stage_1_reduces_gradients_once_a_step_and_stage_2_with_every_micro_batch(
    groups, model, epochs, tmp_path, stage, each, dtype, width
):
    """In float32, on two ranks; then the weights are gathered. Norms and metrics are the few bytes beside."""
    job = make_job(tmp_path / "job", model, epochs, stage, dtype=dtype, guard_tolerance=None)
    weights, found = groups.call(2, bytes_of_a_step, job, [10_000, 60])[0]
    few, many = (micro_batches for micro_batches, _ in found)
    assert few == 1 and many > 2
    for micro_batches, sent in found:
        assert sent["gathered"] == width * weights
        assert sent["reduced"] == pytest.approx(4 * weights * (micro_batches if each else 1), rel=0.002)
