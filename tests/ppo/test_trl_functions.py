"""Every function against numbers that old TRL gave (fixtures/trainer, made by oracles/make_trainer.py)."""

import json
from pathlib import Path

import pytest
import torch

from ppo import AdaptiveKLController, FixedKLController, get_global_statistics
from ppo import losses as ours
from ppo.kl import kl_penalty
from ppo.rewards import compute_advantages, compute_rewards
from ppo.statistics import RunningMoments, masked_mean, masked_var, masked_whiten, whiten

FOLDER = Path(__file__).parent / "fixtures" / "trainer"
FUNCTIONS = json.loads((FOLDER / "functions.json").read_text())
OLDER = {name: json.loads((FOLDER / f"functions_{name}.json").read_text()) for name in ("0_9_6", "0_7_4")}
TOLERANCE = {"float32": {"rtol": 1e-6, "atol": 1e-6}, "float64": {"rtol": 1e-10, "atol": 1e-12}}
# Theirs corrects a variance by a quotient of float32 counts, and adds up in the given precision.
ROUNDED = {"float32": {"rtol": 2e-6, "atol": 2e-6}, "float64": {"rtol": 2e-7, "atol": 2e-7}}


def cases(name):
    found = FUNCTIONS[name]
    assert len(found) >= 2
    return pytest.mark.parametrize("case", found, ids=[str(i) for i in range(len(found))])


def tensors(case):
    dtype = getattr(torch, case["dtype"])
    whole = ("mask", "labels")
    return {k: torch.tensor(v, dtype=torch.long if k in whole else dtype) for k, v in case["inputs"].items()}


def check(case, found, expected=None, mask=None, tolerance=TOLERANCE):
    wanted = torch.tensor(case["outputs"] if expected is None else expected, dtype=found.dtype)
    if mask is not None:
        found, wanted = found[mask], wanted[mask]
    torch.testing.assert_close(found.detach(), wanted, **tolerance[case["dtype"]])


@cases("controllers")
def test_controllers(case):
    given = case["inputs"]
    adaptive = case["kind"] != "fixed"
    controller = (
        AdaptiveKLController(given["start"], given["target"], given["horizon"])
        if adaptive
        else FixedKLController(given["start"])
    )
    for current, count, expected in zip(given["currents"], given["counts"], case["outputs"]["values"], strict=True):
        controller.update(current, count)
        assert controller.value == pytest.approx(expected, rel=1e-12)


@cases("masked_mean")
def test_masked_mean(case):
    check(case, masked_mean(**tensors(case), axis=case["axis"]))


@cases("masked_var")
def test_masked_var(case):
    check(case, masked_var(**tensors(case), unbiased=case["unbiased"]), tolerance=ROUNDED)


@cases("masked_whiten")
def test_masked_whiten(case):
    given = tensors(case)
    check(case, masked_whiten(**given, shift_mean=case["shift_mean"]), mask=given["mask"].bool(), tolerance=ROUNDED)


@cases("whiten")
def test_whiten(case):
    check(case, whiten(**tensors(case), shift_mean=case["shift_mean"]), tolerance=ROUNDED)


@cases("entropy_from_logits")
def test_entropy(case):
    check(case, ours.entropy_from_logits(**tensors(case)))


@cases("logprobs_from_logits")
def test_logprobs(case):
    check(case, ours.logprobs_from_logits(**tensors(case)))


@cases("clip_by_value")
def test_clip_by_value(case):
    given = tensors(case)
    check(case, ours.clip_by_value(given["x"], given["low"], given["high"]))


@cases("kl_penalty")
def test_kl_penalty(case):
    given = tensors(case)
    check(case, kl_penalty(given["logprobs"], given["ref_logprobs"], case["penalty"]))


@cases("compute_rewards")
def test_compute_rewards(case):
    given = tensors(case)
    given["kl_coef"] = float(given["kl_coef"])
    found = compute_rewards(**given, kind=case["penalty"])
    for tensor, name in zip(found, ("rewards", "non_score_rewards", "kl"), strict=True):
        check(case, tensor, case["outputs"][name])


@cases("compute_advantages")
def test_compute_advantages(case):
    """Equal where TRL is right; where it is wrong (holes, whitened rewards) returns differ, clearly."""
    given, mask = tensors(case), tensors(case)["mask"].bool()
    found = compute_advantages(**given, **case["options"])
    if case["divergence"] is None:
        for tensor, name in zip(found, ("values", "advantages", "returns"), strict=True):
            check(case, tensor, case["outputs"][name], mask, ROUNDED)
        return
    theirs = torch.tensor(case["outputs"]["returns"], dtype=found.returns.dtype)
    assert (found.returns - theirs)[mask].abs().max() > 1e-3


@cases("loss")
def test_loss(case):
    given, expected = tensors(case), case["outputs"]
    given["logprobs"].requires_grad_()
    given["vpreds"].requires_grad_()
    options = case["options"]
    sums = ours.loss_sums(**given, cliprange=options["cliprange"], cliprange_value=options["cliprange_value"])
    stats = ours.statistics(sums.numbers, options["vf_coef"])
    guarded = ours.means(sums.numbers)["ratio"] > options["ratio_threshold"]
    assert guarded == (case["name"] == "guard")
    if guarded:  # theirs are multiplied by 0
        assert (expected["policy_loss"], expected["value_loss"]) == (0.0, 0.0)
        return
    policy, value = (x / sums.numbers[0].to(x.dtype) for x in (sums.policy, sums.value))
    check(case, policy, expected["policy_loss"])
    check(case, options["vf_coef"] * value, expected["value_loss"])
    (policy + options["vf_coef"] * value).backward()
    check(case, given["logprobs"].grad, expected["logprobs_gradient"])
    check(case, given["vpreds"].grad, expected["vpreds_gradient"])
    close = {"float32": {"rel": 1e-5, "abs": 1e-6}, "float64": {"rel": 2e-7, "abs": 1e-9}}[case["dtype"]]
    for name, number in stats.items():
        assert number == pytest.approx(expected["stats"][name], **close), name
    assert {*stats, "policy/advantages", "policy/ratio"} == {*expected["stats"]}


@pytest.mark.parametrize("source", ["0_11_4", "0_9_6", "0_7_4"])
def test_running_moments(source):
    found = (FUNCTIONS if source == "0_11_4" else OLDER[source])["running_moments"]
    for case in found:
        moments = RunningMoments()
        for batch, expected in zip(case["inputs"]["batches"], case["outputs"], strict=True):
            mean, std = moments.update(torch.tensor(batch))
            assert mean == pytest.approx(expected["returned"][0], rel=1e-6)
            if len(batch) > 1:
                assert std == pytest.approx(expected["returned"][1], rel=1e-6)
            if moments.count > 1:
                for name in ("mean", "std", "var", "count"):
                    assert getattr(moments, name) == pytest.approx(expected[name], rel=1e-5), name
            else:
                assert case["divergence"] == "first_batch_of_one"
                assert (moments.std, expected["std"]) != (expected["std"], moments.std)


@pytest.mark.parametrize("source", ["0_11_4", "0_9_6", "0_7_4"])
def test_global_statistics(source):
    found = (FUNCTIONS if source == "0_11_4" else OLDER[source])["get_global_statistics"]
    for case in found:
        mask = None if case["inputs"]["mask"] is None else torch.tensor(case["inputs"]["mask"])
        mean, variance, count = get_global_statistics(None, torch.tensor(case["inputs"]["xs"]), mask)
        expected = case["outputs"]
        assert count == expected["count"]
        if case["divergence"] is None:
            assert (float(mean), float(variance)) == pytest.approx((expected["mean"], expected["variance"]), rel=1e-5)
        else:
            assert abs(float(mean) - expected["mean"]) > 1e-2
