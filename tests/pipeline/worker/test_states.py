"""What sizing counts for weights, gradients and Adam's states, against the tensors that are alive on a rank."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpo.lm.sequences import TokenSequence
from pipeline.models.sizing import Zero, states_bytes
from pipeline.worker.engine import Engine
from pipeline.worker.job import Job
from tests.pipeline.worker.small_run import LLAMA, make_job, model_folder

pytestmark = pytest.mark.group

WIDE = {**LLAMA, "hidden_size": 256, "intermediate_size": 768}  # wide enough that nothing but matrices counts
BUCKETS = {"reduce_bucket_size": 20_000, "allgather_bucket_size": 20_000}
STAGES = [("float32", 0), *((dtype, stage) for dtype in ("bfloat16", "float32") for stage in (1, 2, 3))]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "wide", WIDE)


def storages():
    """All memory of tensors that Python can reach and that are not frozen, by its address."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    found = [t.untyped_storage() for t in tensors if t.device.type == "cpu"]
    return {storage.data_ptr(): storage for storage in found}


def held(job: Job):
    """Two steps of two micro-batches: the most that a parameter takes between the parts of the second, in bytes."""
    gc.collect()
    gc.freeze()  # what libraries and earlier jobs left: half a million objects need not be looked at each time
    engine = Engine(job, torch.device("cpu"))
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.engine.module.parameters())
    draw = np.random.default_rng(0)
    sides = [TokenSequence([1, 2], draw.integers(0, engine.vocabulary, 2).tolist(), [True] * 2) for _ in range(2)]
    batch, found = engine.collate(sides, 1), []
    for _ in range(2):
        for last in (False, True):
            engine.backward(engine.logps(batch, False).logps.sum(), last=last)
            now = storages()
            found.append(sum(storage.nbytes() for storage in now.values()))
        engine.step(1e-5)
    engine.close()
    gc.unfreeze()
    return max(found[2:]) / parameters


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("dtype", "stage"), STAGES)
def test_a_parameter_takes_the_bytes_that_are_counted(groups, wide, tmp_path, dtype, stage, ranks):
    job = make_job(tmp_path / "job", wide, [[]], stage, dtype=dtype)
    zero = {**job.deepspeed["zero_optimization"], **BUCKETS}
    job = replace(job, deepspeed={**job.deepspeed, "zero_optimization": zero})
    expected = states_bytes(1.0, Zero.of(job.deepspeed, ranks))
    assert groups.call(ranks, held, job) == [pytest.approx(expected, rel=0.05)] * ranks
