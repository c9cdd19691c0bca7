"""The training loop on real process groups with the real DeepSpeed, against the same run written plainly."""

from __future__ import annotations

import shutil
from math import cos, log, pi
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dpo.lm.logprobs import LogprobModel
from dpo.lm.models import load_model
from dpo.lm.weights import read_weights
from dpo.terms import Term
from pipeline.store.tokens import LOGPS, PAIRS
from pipeline.worker.loop import Done, Job
from pipeline.worker.objectives import Rows
from pipeline.worker.plan import plan_step
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import (
    CLIP,
    LLAMA,
    RATE,
    X_ROTARY,
    X_TIED,
    apart,
    cached,
    curve,
    distance,
    epochs_of,
    json_lines,
    make_job,
    make_rows,
    model_folder,
    plain_run,
    preference,
    scored_logps,
    tables,
    trained,
)

pytestmark = pytest.mark.group

MODELS = {"llama": LLAMA, "x-rotary": X_ROTARY, "x-tied": X_TIED}
RUNS = [*(("llama", stage) for stage in range(4)), *(("x-rotary", stage) for stage in range(4)), ("x-tied", 3)]
EACH_RUN = pytest.mark.parametrize(("name", "stage"), RUNS)
# Four steps of warm-up, then down to 0 just after the last of 20 steps.
LINEAR = [RATE * n / 4 for n in (1, 2, 3, 4)] + [RATE * n / 16 for n in range(16, 0, -1)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: model_folder(root / name, config) for name, config in MODELS.items()}


@pytest.fixture(scope="module")
def data(folders):
    """Two epochs of 10 steps of 8 pairs, and two steps of held-out pairs, for each model."""
    return {
        name: (
            epochs_of(cached(folder, make_rows(80, 0)), [8] * 10, 2),
            tables(cached(folder, make_rows(7, 1)), [4, 3]),
        )
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def plain(folders, data):
    return {name: plain_run(folders[name], epochs, LINEAR) for name, (epochs, _) in data.items()}


@pytest.fixture(scope="module")
def runs(groups, folders, data, tmp_path_factory):
    """The same 20 steps by two workers at every stage: (model, stage) -> job and what its ranks returned."""
    root = tmp_path_factory.mktemp("zero")
    options = {"schedule": "linear", "warmup_steps": 4, "evaluate_every": 5, "audit": True}
    jobs = [make_job(root / f"{name}-{s}", folders[name], data[name][0], s, **options) for name, s in RUNS]
    answers = groups.run(2, [Task(job, *data[name]) for job, (name, _) in zip(jobs, RUNS, strict=True)])
    return {run: (job, answer) for run, job, answer in zip(RUNS, jobs, answers, strict=True)}


@EACH_RUN
def test_every_stage_follows_the_plain_run(name, stage, runs, plain):
    job, (done, other) = runs[name, stage]
    losses = curve(job)
    assert losses == pytest.approx([m["loss"] for m in plain[name].metrics], abs=1e-5)
    assert apart(job, plain[name]) < 1e-4
    assert done == other == Done(20, 20, None, losses[0], losses[-1], done.peak_bytes, 0.0, None)
    if name != "x-tied":  # its head starts from embeddings so small that 20 steps do not get it there
        assert sum(losses[-5:]) / 5 < 0.55


@EACH_RUN
def test_gradient_norms_before_clipping_are_those_of_the_plain_run(name, stage, runs, plain):
    job, _ = runs[name, stage]
    assert curve(job, "grad_norm") == pytest.approx(plain[name].norms, rel=1e-5)


def test_clipping_bites_in_some_steps_and_not_in_others(plain):
    for name in ("llama", "x-rotary"):
        assert min(plain[name].norms) < 0.9 * CLIP and max(plain[name].norms) > 1.2 * CLIP


@EACH_RUN
def test_training_starts_at_the_reference(name, stage, runs):
    job, _ = runs[name, stage]
    assert curve(job)[0] == pytest.approx(log(2), abs=1e-6)


@EACH_RUN
def test_logged_metrics_and_rates_are_those_of_the_plain_run(name, stage, runs, plain):
    job, _ = runs[name, stage]
    assert curve(job, "learning_rate") == pytest.approx(LINEAR)
    for metric in plain[name].metrics[0].keys() - {"rewards/accuracies"}:  # that of step 0 is a tie
        expected = [m[metric] for m in plain[name].metrics]
        assert curve(job, metric) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@EACH_RUN
def test_audit_has_every_row_once_an_epoch_at_its_step(name, stage, runs, data):
    job, _ = runs[name, stage]
    lines = json_lines(Path(job.logs) / "audit.jsonl")
    assert sorted((line["step"], line["rank"]) for line in lines) == [(s, r) for s in range(1, 21) for r in range(2)]
    assert all(line["attempt"] == 1 and line["row_ids"] for line in lines)
    for epoch, steps in enumerate(data[name][0]):
        mine = [line for line in lines if line["epoch"] == epoch]
        assert sorted(i for line in mine for i in line["row_ids"]) == list(range(80))
        for number, table in enumerate(steps, 10 * epoch + 1):
            of_step = [i for line in mine if line["step"] == number for i in line["row_ids"]]
            assert sorted(of_step) == sorted(table["row_id"].to_pylist())


@EACH_RUN
def test_evaluation_in_between_is_that_of_the_weights_then(name, stage, runs, plain, folders, data):
    job, _ = runs[name, stage]
    rows = [row for row in json_lines(Path(job.logs) / "metrics.jsonl") if "eval/loss" in row]
    assert [row.pop("step") for row in rows] == [5, 10, 15]
    held_out = [row for table in data[name][1] for row in table.to_pylist()]
    for row, weights in zip(rows, plain[name].weights[4::5], strict=False):
        _, expected = preference(with_weights(folders[name], weights), held_out)
        assert row == pytest.approx({f"eval/{k}": v for k, v in expected.items()}, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_stage_3_load_as_a_model(name, runs, plain, folders):
    job, _ = runs[name, 3]
    shutil.copy(folders[name] / "config.json", job.weights)
    ids = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_model(job.weights, torch.float32)(ids)
        expected = with_weights(folders[name], plain[name].weights[-1]).model(ids)
        start = load_model(folders[name], torch.float32)(ids)
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - start).abs().max() > 0.1


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_two_or_four_micro_batches_a_step_make_no_difference(groups, stage, folders, data, plain, tmp_path):
    steps = data["llama"][0][0]
    budgets = {1: 200, 2: 44, 4: 1}  # a worker has 4 pairs a step, of 13 to 21 tokens
    for count, budget in budgets.items():
        plans = [plan_step(pair_tokens(table), 2, budget) for table in steps]
        assert {len(micro_batches) for plan in plans for micro_batches in plan} == {count}
    options = {"schedule": "linear", "warmup_steps": 4}
    jobs = [
        make_job(tmp_path / str(count), folders["llama"], [steps], stage, micro_batch_tokens=budget, **options)
        for count, budget in budgets.items()
    ]
    groups.run(2, [Task(job, [steps], []) for job in jobs])
    moved = distance(trained(jobs[0]), dict(read_weights(folders["llama"])))
    assert moved > 0.01
    for job in jobs[1:]:
        assert curve(job) == pytest.approx(curve(jobs[0]), abs=1e-5)
        assert distance(trained(job), trained(jobs[0])) < 1e-5


OBJECTIVES = {
    "aot": (Term("aot", {"beta": 0.1}),),
    "aot_unpaired, sft": (Term("aot_unpaired", {"beta": 0.1}, weight=0.7), Term("sft", weight=0.1)),
    "bco_pair with baseline": (Term("bco_pair", {"beta": 0.1}, running_baseline=True),),
    "ipo, LD-DPO, WPO": (Term("ipo", {"beta": 0.5}), Term("sigmoid", {"beta": 0.1}, ld_alpha=0.5, wpo=True)),
    "simpo, cpo, orpo": (Term("simpo", {"beta": 2.0}), Term("cpo", {"beta": 0.1}), Term("orpo")),
    "kto-like": (Term("hinge", {"beta": 0.1, "divergence": "js"}), Term("apo_zero", {"beta": 0.1})),
}


def test_ranks_budgets_layouts_and_checkpointing_change_no_loss(groups, folders, data, tmp_path):
    """One rank with whole steps, and two ranks with a pair a micro-batch, unshared, or with recomputed activations."""
    epochs, held_out = data["llama"]
    epochs = [epochs[0][:6]]
    ways = {
        "one": (1, {"micro_batch_tokens": 1000}),
        "two": (2, {"micro_batch_tokens": 1}),
        "padded": (2, {"may_share": False}),
        "recomputed": (2, {"activation_checkpointing": True}),
        "recomputed and sharded": (2, {"activation_checkpointing": True}),
    }
    stages = {"recomputed and sharded": 3}
    jobs = {
        (way, name): make_job(
            tmp_path / way / str(number),
            folders["llama"],
            epochs,
            stages.get(way, 2),
            mixture=mixture,
            evaluate_every=3,
            **options,
        )
        for way, (_, options) in ways.items()
        for number, (name, mixture) in enumerate(OBJECTIVES.items())
    }
    for world_size in (1, 2):
        mine = [job for (way, _), job in jobs.items() if ways[way][0] == world_size]
        answers = groups.run(world_size, [Task(job, epochs, held_out) for job in mine])
        for job, of_ranks in zip(mine, answers, strict=True):
            assert [answer.unshared is None for answer in of_ranks] == [job.may_share] * world_size
    start = dict(read_weights(folders["llama"]))
    for name in OBJECTIVES:
        first = jobs["one", name]
        moved = distance(trained(first), start)
        assert moved > 0.01, name
        (held_out_loss,) = evaluations(first)
        for way in ways.keys() - {"one"}:
            assert evaluations(jobs[way, name]) == pytest.approx([held_out_loss], rel=1e-5), (way, name)
            assert curve(jobs[way, name]) == pytest.approx(curve(first), rel=1e-5, abs=1e-5), (way, name)
            assert distance(trained(jobs[way, name]), trained(first)) < 1e-4 * max(1.0, moved), (way, name)


def test_steps_too_small_for_the_workers(groups, folders, tmp_path):
    rows = cached(folders["llama"], make_rows(17, 2))
    epochs = epochs_of(rows, [8, 6, 2, 1], 2)
    plan = plan_step([16, 16], world_size=3, token_budget=64)
    assert plan[2] == [[]]  # the third worker computes for the others' sake
    jobs = [
        make_job(tmp_path / str(stage), folders["llama"], epochs, stage, max_grad_norm=0.0, audit=True)
        for stage in range(4)
    ]
    groups.run(3, [Task(job, epochs, []) for job in jobs])
    expected = plain_run(folders["llama"], epochs, [RATE] * 8, max_grad_norm=0.0)
    assert max(expected.norms) > 1.2 * CLIP  # so that clipping, which is off, would show
    for job in jobs:
        assert curve(job) == pytest.approx([m["loss"] for m in expected.metrics], abs=1e-5)
        assert curve(job, "grad_norm") == pytest.approx(expected.norms, rel=1e-5)
        assert apart(job, expected) < 1e-4
        for epoch in range(2):
            lines = [line for line in json_lines(Path(job.logs) / "audit.jsonl") if line["epoch"] == epoch]
            assert sorted(i for line in lines for i in line["row_ids"]) == list(range(17))


@pytest.mark.parametrize("by", [0.01, -0.01])
def test_a_reference_that_is_not_the_start_is_refused_before_any_update(groups, by, folders, data, tmp_path):
    (first, *rest), *_ = data["llama"][0]
    for side in ("chosen", "rejected"):
        column = [[value + by for value in row] for row in first[f"{side}_logps"].to_pylist()]
        at = first.schema.get_field_index(f"{side}_logps")
        first = first.set_column(at, f"{side}_logps", pa.array(column, LOGPS))
    chosen, rejected = ([len(row) for row in first[f"{side}_logps"].to_pylist()] for side in ("chosen", "rejected"))
    margin = abs(by) * sum(abs(c - r) for c, r in zip(chosen, rejected, strict=True)) / len(chosen)
    epochs = [[first, *rest]]
    jobs = [make_job(tmp_path / str(stage), folders["llama"], epochs, stage) for stage in (2, 3)]
    answers = groups.run(2, [Task(job, epochs, []) for job in jobs])
    for job, of_ranks in zip(jobs, answers, strict=True):
        assert [str(answer)[:44] for answer in of_ranks] == ["Before the first update, policy and cached r"] * 2
        assert "differ by 0.01 nats per token" in str(of_ranks[0])
        assert f"should be 0, is {margin:.3g} nats on average" in str(of_ranks[0])
        assert not (Path(job.logs) / "metrics.jsonl").exists()
        assert not list(Path(job.weights).iterdir())


@pytest.mark.parametrize("sides", [("chosen",), ("chosen", "rejected")])
def test_supervised_training_divides_by_the_tokens_of_the_whole_step(groups, sides, folders, data, tmp_path):
    steps = data["llama"][0][0]
    rates = [RATE * 0.5 * (1 + cos(pi * n / 10)) for n in range(10)]

    def mean_nll(model, rows):
        mean = -torch.cat([scored_logps(model, row, side) for row in rows for side in sides]).mean()
        return mean, {"loss": float(mean.detach())}

    expected = plain_run(folders["llama"], [steps], rates, loss=mean_nll)
    options = {"mixture": (), "imitated": sides, "guard_tolerance": None, "schedule": "cosine"}
    job = make_job(tmp_path / "job", folders["llama"], [steps], 2, micro_batch_tokens=40, **options)
    # A supervised step is planned from columns that are there before any reference is.
    epochs = [[table.select(PAIRS.names) for table in steps]]
    groups.run(2, [Task(job, epochs, [])])
    losses = curve(job)
    assert losses == pytest.approx([m["loss"] for m in expected.metrics], abs=1e-5)
    assert losses[-1] < losses[0] - 0.2
    assert apart(job, expected) < 1e-4


def test_bfloat16_gives_nearly_the_same_curve(groups, folders, plain, tmp_path):
    """Within 0.01 nats at each step of a loss that falls by 0.3: weights are rounded to 8 bits, sums are not."""
    epochs = epochs_of(cached(folders["llama"], make_rows(80, 0), torch.bfloat16), [8] * 10, 2)
    options = {"schedule": "linear", "warmup_steps": 4, "dtype": "bfloat16", "guard_tolerance": 0.05}
    jobs = [make_job(tmp_path / str(stage), folders["llama"], epochs, stage, **options) for stage in (1, 3)]
    groups.run(2, [Task(job, epochs, []) for job in jobs])
    expected = [m["loss"] for m in plain["llama"].metrics]
    for job in jobs:
        assert curve(job) == pytest.approx(expected, abs=0.01)
        assert {tensor.dtype for tensor in trained(job).values()} == {torch.bfloat16}


BESIDE = {  # the keys that `deepspeed.stage = "auto"` chooses beside a stage, for a model as small as this one
    1: {},
    2: {"overlap_comm": True, "reduce_bucket_size": 1000},
    3: {"stage3_prefetch_bucket_size": 500, "stage3_max_live_parameters": 5000},
}


def test_what_is_chosen_beside_a_stage_changes_no_curve(groups, model, epochs, tmp_path):
    jobs = [make_job(tmp_path / str(stage), model, epochs, stage) for stage in BESIDE]
    for job, keys in zip(jobs, BESIDE.values(), strict=True):
        job.deepspeed["zero_optimization"].update(keys)
    groups.run(2, [Task(job, epochs, []) for job in jobs])
    first, *others = (curve(job) for job in jobs)
    assert first[-1] < first[0] - 0.2
    for other in others:
        assert other == pytest.approx(first, abs=1e-5)


def evaluations(job: Job) -> list[float]:
    """The held-out losses during training."""
    return [row["eval/loss"] for row in json_lines(Path(job.logs) / "metrics.jsonl") if "eval/loss" in row]


def pair_tokens(table: pa.Table) -> list[int]:
    """Tokens of each pair, its prompt counted once."""
    rows = Rows(table)
    return (rows.prompt + rows.chosen + rows.rejected).tolist()


def with_weights(folder: Path, weights: dict[str, torch.Tensor]) -> LogprobModel:
    """The folder's model with other weights."""
    model = load_model(folder, torch.float32)
    missing, unknown = model.network.load_state_dict(weights, strict=False)
    assert not unknown and not set(missing) - {"lm_head.weight"}  # which is tied
    return LogprobModel(model)
