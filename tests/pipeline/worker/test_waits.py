"""How often an optimizer step makes the CPU wait for the device, counted on the CPU."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpo.lm.batch import SequenceBatch, collate
from dpo.lm.sequences import TokenSequence
from dpo.step import Baseline
from dpo.terms import Term
from pipeline.worker import loop
from pipeline.worker.engine import Engine
from pipeline.worker.objectives import Rows
from pipeline.worker.rank import Rank
from tests.pipeline.worker.small_run import cached, make_job, make_rows, tables

pytestmark = pytest.mark.group
SIZES = ("aten::nonzero", "aten::masked_select", "aten::unique")  # the size of the result lies on the device
MOST = 3  # DeepSpeed looks at the norm, and its copy on the device is read with the metrics


class Waits(TorchDispatchMode):
    """Counts what reads a tensor back in the thread that computes; another one lays out the next micro-batch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        reads = function.name() == "aten::_local_scalar_dense" or function.name().startswith(SIZES)
        # Without a size given, the sum of its counts is read from the device.
        reads |= function.name() == "aten::repeat_interleave.Tensor" and not (kwargs or {}).get("output_size")
        self.count += reads
        return function(*args, **(kwargs or {}))


def waits_of_a_step(job, budgets):
    """The micro-batches and the waits of a step, for several sizes of micro-batch."""
    engine = Engine(job, torch.device("cpu"))
    rows = cached(Path(job.model), make_rows(24, 0))
    steps = [Rows(table) for table in tables(rows, [8, 8, 8])]
    read_list, thread = torch.Tensor.tolist, threading.get_ident()
    found = []
    for budget in budgets:
        me = Rank(replace(job, micro_batch_tokens=budget), engine, None, 0, 1, 1, lambda: False, Baseline(), None)
        for number in (0, 2, 0):  # under ZeRO-3 DeepSpeed records the order of modules first
            loop._optimizer_step(me, steps[number], 0)
        waits = Waits()

        def to_list(tensor, watched=waits):
            watched.count += threading.get_ident() == thread
            return read_list(tensor)

        torch.Tensor.tolist = to_list
        try:
            with waits:
                loop._optimizer_step(me, steps[1], 1)
        finally:
            torch.Tensor.tolist = read_list
        found.append((len(loop._share(me, me.objective, steps[1])), waits.count))
    engine.close()
    return found


DESENSITISED = Term("sigmoid", {"beta": 0.1}, ld_alpha=0.5)  # tokens weigh by their place in a side


@pytest.mark.parametrize(("stage", "changes"), [(1, {}), (2, {}), (3, {}), (2, {"mixture": (DESENSITISED,)})])
def test_waits_do_not_grow_with_the_micro_batches(groups, model, epochs, tmp_path, stage, changes):
    job = make_job(tmp_path / "job", model, epochs, stage, dtype="bfloat16", guard_tolerance=None, **changes)
    (found,) = groups.call(1, waits_of_a_step, job, [10_000, 48])
    (few, waits_of_few), (many, waits_of_many) = found
    assert few == 1 and many > 2
    assert waits_of_many == waits_of_few and 0 < waits_of_few <= MOST


def test_counts_stay_on_the_host():
    """Moving a batch to a device that cannot be read leaves what the loop reads where it can."""
    batch = collate([TokenSequence([1, 2], [3, 4, 5], [True, False, True])], 0)
    moved: SequenceBatch = batch.to(torch.device("meta"))
    assert moved.grid(torch.zeros(2, device="meta")).shape == (1, 2)
