"""A job with an adapter gives one result on one or two ranks, at every ZeRO stage, in float32 and in bfloat16."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo.lm.adapter_files import Worn
from dpo.lm.weights import read_weights
from tests.dpo.lm.adapters import lora, network, saved
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import VOCABULARY, cached, curve, epochs_of, make_job, make_rows
from tests.pipeline.worker.small_run import saved as checkpoints

pytestmark = pytest.mark.group


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(network(vocab_size=VOCABULARY), tmp_path_factory.mktemp("base") / "base")


def adapter_of(folder, dtype=torch.float32, **options):
    """A new adapter."""
    made = lora(network(vocab_size=VOCABULARY, dtype=dtype), trained=False, target_modules="all-linear", **options)
    return saved(made, folder)


def task(folder, base, adapter, stage, dtype="float32", **changes):
    rows = cached(base, make_rows(16, seed=3), getattr(torch, dtype))
    epochs = epochs_of(rows, [8, 8], 2)
    changes = {"worn": Worn(str(adapter)), "base": ("a digest", None), "dtype": dtype, **changes}
    if dtype == "bfloat16":
        changes |= {"guard_tolerance": 0.05}
    return Task(make_job(folder, base, epochs, stage, **changes), epochs, [])


def trained(job):
    return load_file(Path(job.weights) / "adapter_model.safetensors")


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.long)])
def test_one_rank_and_two_at_every_stage_give_one_adapter(groups, tmp_path, base, checkpointing):
    adapter = adapter_of(tmp_path / "adapter")
    options = {"activation_checkpointing": checkpointing, "learning_rate": 1e-2}
    tasks = {
        (ranks, stage): task(tmp_path / f"{ranks}-{stage}", base, adapter, stage, **options)
        for ranks in (1, 2)
        for stage in (0, 1, 2, 3)
    }
    for ranks in (1, 2):
        answers = groups.run(ranks, [tasks[ranks, stage] for stage in (0, 1, 2, 3)])
        assert not any(isinstance(answer, str) for of_task in answers for answer in of_task), answers
    first = tasks[1, 0].job
    assert curve(first)[-1] < 0.6
    for each in tasks.values():
        assert max(abs(a - b) for a, b in zip(curve(each.job), curve(first), strict=True)) < 1e-4
        assert furthest(trained(each.job), trained(first)) < 1e-3
    assert furthest(trained(first), load_file(adapter / "adapter_model.safetensors")) > 1e-3


@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.long)])
def test_another_number_of_workers_goes_on_from_a_checkpoint_of_adapters(groups, tmp_path, base, stage):
    adapter = adapter_of(tmp_path / "adapter", modules_to_save=["lm_head"])
    whole, cut = (task(tmp_path / name, base, adapter, stage, checkpoint_steps=2) for name in ("whole", "cut"))
    groups.run(2, [whole])
    assert groups.run_afresh(2, [cut._replace(stop_at=3)]) == [["stopped"] * 2]
    (left,) = checkpoints(cut.job)
    size = sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
    own = sum(tensor.numel() for tensor in trained(whole.job).values())
    assert size < 1.05 * 12 * own + 200_000 * 2  # of two ranks, each with files of its own
    answers = groups.run(1, [cut])
    assert not any(isinstance(answer, str) for answer in answers[0]), answers
    assert max(abs(a - b) for a, b in zip(curve(cut.job), curve(whole.job), strict=True)) < 1e-5
    assert furthest(trained(cut.job), trained(whole.job)) < 1e-4


@pytest.mark.parametrize(("dtype", "each"), [("float32", 12), ("bfloat16", 14)])
def test_a_checkpoint_keeps_each_number_once(groups, tmp_path, base, dtype, each):
    """A weight in float32 and two moments; in bfloat16 also the weight that computes. All of the adapter alone."""
    adapter = adapter_of(tmp_path / "adapter", getattr(torch, dtype), r=256)
    stages = (0, 1, 2, 3) if dtype == "float32" else (1, 2, 3)
    options = {"dtype": dtype, "checkpoint_steps": 1}
    tasks = [task(tmp_path / str(stage), base, adapter, stage, **options) for stage in stages]
    answers = groups.run(1, tasks)
    assert not any(isinstance(answer, str) for of_task in answers for answer in of_task), answers
    for done in tasks:
        own = sum(tensor.numel() for tensor in trained(done.job).values())
        size = sum(path.stat().st_size for path in checkpoints(done.job)[-1].rglob("*") if path.is_file())
        assert own > 200_000 and 12 * own < size < 1.05 * own * each + 200_000


def test_in_bfloat16_all_stages_train_one_function_and_doras_norms_move(groups, tmp_path, base):
    """Its small updates would round away in bfloat16: the masters are in float32."""
    adapter = adapter_of(tmp_path / "adapter", torch.bfloat16, use_dora=True)
    options = {"dtype": "bfloat16", "learning_rate": 3e-3}
    tasks = [task(tmp_path / str(stage), base, adapter, stage, **options) for stage in (1, 2, 3)]
    answers = groups.run(2, tasks)
    assert not any(isinstance(answer, str) for of_task in answers for answer in of_task), answers
    curves = [curve(each.job) for each in tasks]
    assert max(abs(a - b) for other in curves[1:] for a, b in zip(other, curves[0], strict=True)) < 0.02
    before, after = load_file(adapter / "adapter_model.safetensors"), trained(tasks[0].job)
    norms = [name for name in before if "lora_magnitude" in name]
    moved = [float((after[name].float() - before[name].float()).abs().max()) for name in norms]
    assert len(moved) == 14 and sum(each > 0 for each in moved) > 7
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert dict(read_weights(base)).keys().isdisjoint(after)
