"""What stops a run: memory on one rank, gradients and weights that are not finite, a device that nobody asked for."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.errors import Diverged, InputError
from pipeline.worker.engine import Engine, place
from pipeline.worker.loop import train
from pipeline.worker.verdict import OutOfMemory, out_of_memory_as, with_one_verdict
from tests.pipeline.worker.small_run import json_lines, make_job
from tests.places import ROOT

SENTENCE = "too large"


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL error ... ncclUnhandledCudaError: Call to CUDA function failed. Last error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried"),
    ],
    ids=["torch", "cublas", "nccl", "cpu"],
)
def test_libraries_without_memory_are_known(error):
    with pytest.raises(OutOfMemory, match=SENTENCE), out_of_memory_as(lambda: SENTENCE):
        raise error


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), out_of_memory_as(lambda: SENTENCE):
        raise RuntimeError("shapes differ")


def test_a_rank_that_waits_hears_of_it(tmp_path):
    note, began = tmp_path / "runs" / "note", time.monotonic()

    def fail():
        raise OutOfMemory(SENTENCE)

    for work in (fail, lambda: time.sleep(600), lambda: [][1]):
        with pytest.raises(InputError, match=SENTENCE):
            with_one_verdict(note, work)
    assert time.monotonic() - began < 30
    assert [path.name for path in note.parent.iterdir()] == ["note"]


def test_the_first_rank_speaks_for_all(tmp_path):
    note = tmp_path / "note"
    for sentence in ("rank 1", "rank 0"):
        with pytest.raises(InputError, match=r"^rank 1$"):
            with_one_verdict(note, lambda said=sentence: (_ for _ in ()).throw(OutOfMemory(said)))


def test_without_a_note_work_returns_and_fails_as_ever(tmp_path):
    assert with_one_verdict(tmp_path / "note", lambda: 3) == 3
    with pytest.raises(IndexError):
        with_one_verdict(tmp_path / "note", lambda: [][1])


def fail_on_rank_1(job, epochs, call):
    """Train; attention on rank 1 has no memory at a call. How long it took, and what was raised."""
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []

    def attention(*args, **options):
        calls.append(1)
        if dist.get_rank() == 1 and len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return attend(*args, **options)

    torch.nn.functional.scaled_dot_product_attention = attention
    began = time.monotonic()
    try:
        train(job, torch.device("cpu"), lambda epoch, first: iter(epochs[epoch]), lambda: iter(()))
    except InputError as error:
        return time.monotonic() - began, len(calls), str(error)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend


@pytest.fixture
def windows(tmp_path):
    """The lengths of a step of one long pair, for the rehearsal."""
    path = tmp_path / "window.npz"
    np.savez(path, lengths=np.array([[4, 6, 6], [3, 5, 5]]), steps=np.array([0]))
    return [str(path)]


@pytest.mark.group
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    ("call", "said"), [(5, "Memory ran out while "), (50, "The largest micro-batch, "), (75, "Memory ran out in step ")]
)
def test_one_rank_out_of_memory_ends_all_ranks(groups, model, epochs, tmp_path, windows, stage, call, said):
    """The process of the rank that failed stays alive, so nothing but the note tells the other."""
    job = make_job(tmp_path / "job", model, epochs, stage, step_lengths=windows, max_grad_norm=0.0)
    groups.run_afresh(2, [])
    group = groups.open.pop(2)
    try:
        answers = group.call(fail_on_rank_1, job, epochs, call, seconds=60)
    finally:
        group.close()
    (seconds_0, _, said_0), (seconds_1, _, said_1) = answers
    assert abs(seconds_0 - seconds_1) < 5
    assert said_0 == said_1 and said_0.startswith(said)
    assert "micro_batch_tokens (it is 64)" in said_0


def bytes_alive(job):
    """Bytes that tensors hold: at the peak of a rehearsal, and before the second update."""
    import gc

    def alive():
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    from dpo.lm.sequences import TokenSequence

    gc.collect()
    gc.freeze()  # what libraries and earlier jobs left need not be looked at each time
    engine = Engine(job, torch.device("cpu"))
    batch = engine.collate([TokenSequence([1, 2], [3, 4], [True, True])], 1)

    def backward(weight, last):
        engine.backward(engine.logps(batch, False).logps.sum() * weight, last=last)

    held = engine.room_for_update()
    backward(0.0, False)
    backward(0.0, False)
    rehearsed = alive()
    del held
    backward(1.0, True)
    engine.step(1e-5)
    backward(1.0, True)
    needed = alive()
    assert not engine.room_for_update().numel() or job.deepspeed["zero_optimization"]["stage"] == 2
    engine.close()
    gc.unfreeze()
    return rehearsed, needed


@pytest.mark.group
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_rehearsal_holds_what_an_update_needs(groups, model, epochs, tmp_path, stage, dtype):
    job = make_job(tmp_path / "job", model, epochs, stage, dtype=dtype)
    for rehearsed, needed in groups.call(2, bytes_alive, job):
        assert rehearsed >= 0.95 * needed


# Gradients and weights that are not finite


def not_finite_in(steps):
    """The hook of a loss: in some of its calls on rank 1 it is NaN."""
    calls = []

    def hook(*_):
        calls.append(1)
        return float("nan") if dist.get_rank() == 1 and len(calls) in steps else 1.0

    return hook


def train_with_nan(job, epochs, steps):
    """Train on two ranks; the gradient of rank 1 is NaN in some steps."""
    hook, backward = not_finite_in(steps), torch.Tensor.backward
    torch.Tensor.backward = lambda loss, *args, **options: backward(loss * hook(), *args, **options)
    try:
        train(job, torch.device("cpu"), lambda epoch, first: iter(epochs[epoch]), lambda: iter(()))
    except InputError as error:
        return str(error)
    finally:
        torch.Tensor.backward = backward
    return "trained"


@pytest.mark.group
@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (2, "float32"), (3, "float32"), (2, "bfloat16")])
def test_a_skipped_step_is_a_metric(groups, model, epochs, tmp_path, stage, dtype):
    job = make_job(tmp_path / "job", model, epochs, stage, dtype=dtype, micro_batch_tokens=10_000, guard_tolerance=1.0)
    assert groups.call(2, train_with_nan, job, epochs, [2]) == ["trained", "trained"]
    rows = json_lines(tmp_path / "job" / "logs" / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [None, 1.0, *[None] * (len(rows) - 2)]
    assert rows[1]["grad_norm"] is None and all(row["grad_norm"] > 0 for row in rows[:1] + rows[2:])


@pytest.mark.group
@pytest.mark.parametrize(("stage", "steps", "ends"), [(0, [2], 2), (2, [2, 3, 4], 4), (3, [2, 3, 4], 4)])
def test_a_run_that_cannot_go_on_ends_before_it_is_saved(groups, model, epochs, tmp_path, stage, steps, ends):
    job = make_job(
        tmp_path / "job", model, epochs, stage, micro_batch_tokens=10_000, checkpoint_steps=1, guard_tolerance=1.0
    )
    answers = groups.call(2, train_with_nan, job, epochs, steps)
    assert answers[0] == answers[1]
    ids = ", ".join(str(i) for i in epochs[0][ends - 1]["row_id"].to_pylist())
    assert answers[0].startswith(f"Step {ends}: the norm of the gradients is ") and f"step: {ids}." in answers[0]
    saved = [path.parent.name for path in Path(job.checkpoints).glob("*/manifest.json")]
    assert sorted(saved)[-1] == f"001-{ends - 1:08}"
    assert not list(Path(job.weights).iterdir())


def weights_become_infinite(job):
    """What two ranks say of their weights, before and after one rank's share has an infinite one."""
    engine = Engine(job, torch.device("cpu"))
    found = [engine.all_finite()]
    if dist.get_rank() == 1:
        held = engine.trainable[-1]
        getattr(held, "ds_tensor", held).data.view(-1)[0] = float("inf")
    found.append(engine.all_finite())
    engine.close()
    return found


@pytest.mark.group
@pytest.mark.parametrize("stage", [2, 3])
def test_an_infinite_weight_of_one_rank_is_seen_by_all(groups, model, epochs, tmp_path, stage):
    job = make_job(tmp_path / "job", model, epochs, stage)
    assert groups.call(2, weights_become_infinite, job) == [[True, False], [True, False]]


def shares_are_padded(job):
    """What three ranks say of their weights, where whatever lies beyond a parameter's end is NaN."""
    engine = Engine(job, torch.device("cpu"))
    padded = 0
    for parameter in engine.trainable:
        share = parameter.ds_tensor
        left = max(0, parameter.ds_numel - dist.get_rank() * share.numel())
        share.data[left:] = math.nan
        padded += max(0, share.numel() - left)
    found = engine.all_finite()
    engine.close()
    return padded, found


@pytest.mark.group
def test_memory_behind_a_parameter_is_no_weight(groups, model, epochs, tmp_path):
    job = make_job(tmp_path / "job", model, epochs, 3)
    answers = groups.call(3, shares_are_padded, job)
    assert sum(padded for padded, _ in answers) > 0
    assert [found for _, found in answers] == [True, True, True]


def train_until_refused(job, epochs):
    """What a rank says of a training that diverges."""
    try:
        train(job, torch.device("cpu"), lambda epoch, first: iter(epochs[epoch]), lambda: iter(()))
    except Diverged as error:
        return str(error)
    return "trained"


def tensors_in(state):
    """The tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for each in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(each)


@pytest.mark.group
@pytest.mark.parametrize(("stage", "rate"), [(2, 1e12), (3, 1e12), (2, 1e30), (0, 1e30), (2, 1e38)])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(groups, model, epochs, tmp_path, stage, rate):
    job = make_job(tmp_path / "job", model, epochs, stage, learning_rate=rate, checkpoint_steps=1, audit=True)
    said, same = groups.call(2, train_until_refused, job, epochs)
    assert said == same and re.match(r"Step [2-9]|After step [1-9]", said), said
    number = int(re.search(r"\d+", said).group())
    rows = json_lines(tmp_path / "job" / "logs" / "metrics.jsonl")
    assert len(rows) == number and all(row["loss"] is not None for row in rows[:-1])
    if said.startswith("Step"):
        ids = epochs[0][number - 1]["row_id"].to_pylist()
        assert all(str(identity) in said for identity in ids)
    for path in Path(job.checkpoints).glob("*/manifest.json"):
        assert int(path.parent.name[-8:]) < number
        shards = [torch.load(shard, weights_only=False) for shard in path.parent.glob("state/*.pt")]
        kept = list(tensors_in(shards))
        assert kept and all(torch.isfinite(each).all() for each in kept)
    assert not list(Path(job.weights).iterdir())


# The device


def test_what_building_left_on_another_device_follows_the_parameters():
    norm, other = torch.nn.BatchNorm1d(2, affine=False), torch.nn.BatchNorm1d(3, affine=False)
    network = torch.nn.Sequential(norm, torch.nn.Sequential(other))
    place(network, torch.device("meta"))
    assert {str(buffer.device) for buffer in network.buffers()} == {"meta"}
    assert len(network.state_dict()) == 6


WITH_GPUS = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 4
torch.cuda.set_device = lambda device: print("set_device", device)
import json, os, sys, torch.distributed as dist
os.environ.update(RANK="0", LOCAL_RANK="5", WORLD_SIZE="1")
{before}
from tests.pipeline.worker.small_run import LLAMA, cached, epochs_of, make_job, make_rows, model_folder
from pathlib import Path
from pipeline.worker.loop import train
folder = Path(sys.argv[1])
model = model_folder(folder / "model", LLAMA)
epochs = epochs_of(cached(model, make_rows(8, 0)), [4] * 2, 1)
dist.init_process_group("gloo", f"file://{{folder}}/rendezvous", world_size=1, rank=0)
job = make_job(folder / "job", model, epochs, 2)
print(train(job, torch.device("cpu"), lambda epoch, first: iter(epochs[epoch]), lambda: iter(())).steps, "steps")
"""
SETTLED = "from pipeline.worker.device import settle; settle(torch.device('cpu'), deterministic={})"


def believes_in_gpus(folder, before):
    said = [sys.executable, "-c", WITH_GPUS.format(before=before), str(folder)]
    chosen = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}  # other tests set it
    return subprocess.run(said, cwd=ROOT, env=chosen, capture_output=True, text=True, check=False)


@pytest.mark.group
def test_a_worker_without_gpus_computes_on_the_cpu_of_a_machine_that_has_some(tmp_path):
    found = believes_in_gpus(tmp_path, SETTLED.format(False))
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines()[-1] == "2 steps" and "set_device" not in found.stdout


@pytest.mark.group
def test_deepspeed_on_its_own_would_take_a_gpu(tmp_path):
    found = believes_in_gpus(tmp_path, "")
    assert found.returncode != 0
    assert "DeepSpeed computes on cuda, this worker on cpu" in found.stderr


def test_a_device_settles_kernels_and_the_order_of_sums():
    said = (
        "import json, os, torch; "
        + SETTLED.format(True)
        + "; print(json.dumps([torch.are_deterministic_algorithms_enabled(), os.environ['CUBLAS_WORKSPACE_CONFIG'], "
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction, torch.backends.cuda.cudnn_sdp_enabled()]))"
    )
    found = subprocess.run([sys.executable, "-c", said], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert json.loads(found) == [True, ":4096:8", False, False]


def test_nobody_imports_deepspeed_before_its_device_is_settled():
    """One file imports it at its top, the engine and its files import that, and only the loop and its parts those."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "dpo", "ppo")
        for path in (ROOT / folder).rglob("*.py")
        if any(line.startswith(("import deepspeed", "from deepspeed")) for line in path.read_text().splitlines())
    }
    assert importers == set()
    text = {path.stem: path.read_text() for path in (ROOT / "pipeline" / "worker").glob("*.py")}
    assert "\n    import deepspeed\n" in text.pop("zero")
    assert {name for name, of in text.items() if "\nfrom pipeline.worker.zero import" in of} == {
        "engine",
        "linear",
        "saving",
    }
    group = (ROOT / "pipeline" / "cluster" / "group.py").read_text(encoding="utf-8")
    assert 0 < group.index("settle(given") < group.index("from pipeline.worker.loop import train")


def test_rows_of_metrics_are_json(tmp_path):
    from pipeline.worker.logs import append_line

    append_line(tmp_path / "rows", {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    assert json.loads((tmp_path / "rows").read_text(), parse_constant=pytest.fail) == {
        "step": 1, "loss": None, "grad_norm": None, "lr": 0.5,
    }  # fmt: skip
