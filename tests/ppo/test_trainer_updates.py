"""Losses, updates, accumulation, guard and early stop of PPOTrainer."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from torch import tensor
from torch.optim.lr_scheduler import LambdaLR

from ppo import (
    PPOTrainer,
)
from ppo.update import Batch
from tests.ppo import tiny
from tests.ppo.trials import GREEDY, QUIET, Numbers, batch, counted, everything, flat, same, sgd

pytestmark = QUIET


# Losses and updates


def ready(found, shift=0.0):
    """The arguments of one mini-batch, by name; the old log-probs lie `shift` below the new ones."""
    queries, responses, _ = batch()
    inputs = found.prepare_model_inputs(queries, responses)
    logprobs, _, values, mask = found.batched_forward_pass(found.model, queries, responses, inputs)
    generator = torch.Generator().manual_seed(5)
    rewards = torch.randn(logprobs.shape, generator=generator)
    values, advantages, returns = found.compute_advantages(values, rewards, mask)
    found.model.eval()
    logits, _, vpreds = found.model(**inputs)
    labels = inputs["input_ids"][:, 1:, None]
    new = logits[:, :-1].log_softmax(-1).gather(-1, labels)[..., 0]
    noise = 0.3 * torch.randn(logprobs.shape, generator=generator)
    return {
        "old_logprobs": logprobs - shift + noise,
        "values": values + 0.5 * torch.randn(values.shape, generator=generator),
        "logits": logits[:, :-1],
        "vpreds": vpreds[:, :-1],
        "logprobs": new,
        "mask": mask,
        "advantages": advantages,
        "returns": returns,
    }


LOSS = "old_logprobs values logits vpreds logprobs mask advantages returns"
TRAIN = "old_logprobs values logprobs logits vpreds mask advantages returns"


def test_loss_and_train_minibatch_have_orders_of_their_own():
    assert " ".join([*inspect.signature(PPOTrainer.loss).parameters][1:]) == LOSS
    assert " ".join([*inspect.signature(PPOTrainer.train_minibatch).parameters][1:]) == TRAIN


def test_loss_and_train_minibatch_agree():
    """The two losses token by token; and the update is the learning rate times the gradient of their sum."""
    found, by_hand = sgd(cliprange=0.15, vf_coef=0.3), sgd(cliprange=0.15, vf_coef=0.3)
    given = ready(by_hand)
    inside = given["mask"].bool()
    columns = (given[name][inside].tolist() for name in TRAIN.split() if name not in ("logits", "mask"))
    policy_terms, value_terms, clipped = [], [], 0
    for old, value, new, now, gain, wanted in zip(*columns, strict=True):
        ratio = math.exp(new - old)
        free, held = -gain * ratio, -gain * min(max(ratio, 0.85), 1.15)
        policy_terms.append(max(free, held))
        clipped += held > free
        near = min(max(now, value - 0.2), value + 0.2)
        value_terms.append(0.5 * max((now - wanted) ** 2, (near - wanted) ** 2))
    policy_loss, value_loss, stats = by_hand.loss(*(given[name] for name in LOSS.split()))
    assert float(policy_loss.detach()) == pytest.approx(np.mean(policy_terms), rel=1e-4, abs=1e-6)
    assert float(value_loss.detach()) == pytest.approx(0.3 * np.mean(value_terms), rel=1e-4)
    assert 0 < clipped < len(policy_terms)
    assert float(stats["policy/clipfrac"]) == pytest.approx(clipped / len(policy_terms))
    by_hand.optimizer.zero_grad()
    (policy_loss + value_loss).backward()
    by_hand.optimizer.step()
    again = ready(found)
    told = found.train_minibatch(*(again[name] for name in TRAIN.split()))
    assert float(told["loss/total"]) == pytest.approx(float((policy_loss + value_loss).detach()), rel=1e-5)
    for name in {*stats} - {"policy/advantages", "policy/ratio"}:
        assert float(told[name]) == pytest.approx(float(stats[name]), rel=1e-6), name
    torch.testing.assert_close(flat(found.model), flat(by_hand.model), rtol=0, atol=1e-6)
    assert (flat(found.model) - flat(tiny.causal())).abs().max() > 1e-3


@pytest.mark.parametrize("shift, fires", [(5.0, True), (0.5, False)])
def test_the_ratio_guard(shift, fires):
    """e^5 is 148, above the threshold 10: the losses are 0, and neither weights nor momentum move; e^0.5 is 1.6."""
    model = tiny.causal()
    found = tiny.trainer(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.01))
    found.step(*batch())  # so that there is momentum
    given = ready(found, shift)
    losses = found.loss(*(given[name] for name in LOSS.split()))[:2]
    assert [float(loss.detach()) == 0.0 for loss in losses] == [fires, fires]
    before, state = flat(model), copy.deepcopy(found.optimizer.state_dict()["state"])
    calls = counted(found)
    told = found.train_minibatch(*(given[name] for name in TRAIN.split()))
    assert len(calls) == (not fires)
    assert torch.equal(flat(model), before) == fires
    now = found.optimizer.state_dict()["state"]
    assert all(torch.equal(now[k]["exp_avg"], state[k]["exp_avg"]) for k in state) == fires
    assert math.isfinite(told["loss/total"])


@pytest.mark.parametrize("beyond", [[0], [3], [1, 2], [0, 1, 2, 3]])
def test_the_guard_leaves_mini_batches_out_of_a_window(beyond):
    """Of four samples in one update the others are learned from, each token as a part of all tokens of the window."""
    found, by_hand = (sgd(mini_batch_size=1, gradient_accumulation_steps=4, ppo_epochs=1) for _ in range(2))
    given, queries, responses = ready(by_hand), *batch()[:2]
    inputs = found.prepare_model_inputs(queries, responses)
    given["old_logprobs"] = given["logprobs"].detach().clone()
    given["old_logprobs"][beyond] -= 5.0
    calls = counted(found)
    columns = (given[name].detach() for name in ("mask", "old_logprobs", "values", "advantages", "returns"))
    found.updates.run(Batch(inputs, *columns), found._early_stop)
    kept = [row for row in range(4) if row not in beyond]
    assert len(calls) == bool(kept)
    if kept:
        part = {name: value[kept] for name, value in given.items()}
        policy_loss, value_loss, _ = by_hand.loss(*(part[name] for name in LOSS.split()))
        by_hand.optimizer.zero_grad()
        ((policy_loss + value_loss) * part["mask"].sum() / given["mask"].sum()).backward()
        by_hand.optimizer.step()
        assert (flat(found.model) - flat(tiny.causal())).abs().max() > 1e-3
    torch.testing.assert_close(flat(found.model), flat(by_hand.model), rtol=0, atol=1e-6)


def test_numbers_that_are_none_change_nothing():
    """A network whose logits are not numbers: the step ends before the first update, and says so."""
    found = tiny.trainer()
    before = everything(found)
    found.model.pretrained_model.lm_head.register_forward_hook(lambda module, given, out: out * math.nan)
    calls = counted(found)
    with pytest.raises(
        FloatingPointError, match=r"the policy's log-probs of samples \[0, 1, 2, 3\] are not finite, before any update"
    ):
        found.step(*batch())
    assert calls == []
    assert everything(found) == before


def test_numbers_that_become_none_change_nothing():
    """The same after the first passes: the updates themselves look as well."""
    found = tiny.trainer()
    before = flat(found.model)
    given = ready(found)
    given["vpreds"] = given["vpreds"] * math.nan
    with pytest.raises(FloatingPointError, match="the loss of a mini-batch is nan, the weights were not changed"):
        found.train_minibatch(*(given[name] for name in TRAIN.split()))
    assert torch.equal(flat(found.model), before)


def test_what_the_guard_leaves_out_is_told():
    found = tiny.trainer(ratio_threshold=1e-6)
    before = flat(found.model)
    with pytest.warns(UserWarning, match="4 of 4 mini-batches changed nothing: .* ratio_threshold = 1e-06"):
        stats = found.step(*batch())
    assert stats["ppo/policy/skipped"] == 4
    assert torch.equal(flat(found.model), before)


@pytest.mark.parametrize(
    "mini, accumulation, updates", [(4, 1, 2), (2, 1, 4), (1, 1, 8), (1, 2, 4), (2, 2, 2), (1, 4, 2)]
)
def test_updates_of_a_step(mini, accumulation, updates):
    """Two epochs through four samples; the statistics are those of two epochs of tokens anyway."""
    found = tiny.trainer(mini_batch_size=mini, gradient_accumulation_steps=accumulation)
    calls, data = counted(found), batch()
    stats = found.step(*data)
    assert len(calls) == updates
    assert len(stats["ppo/policy/ratio"]) == 2 * sum(len(response) for response in data[1])


def test_accumulation_in_a_loop_over_the_loader():
    """Two windows of two in each of two epochs, on the last batch of the loader as on the first, with one result."""
    ended = []
    for inside in (True, False):
        found = sgd(mini_batch_size=1, gradient_accumulation_steps=2)
        loader = found.prepare_dataloader(Numbers(8))
        calls, counts = counted(found), []
        for step, _ in enumerate(loader if inside else range(2)):
            found.step(*batch(seed=step))
            counts.append(len(calls))
        assert counts == [4, 8]
        ended.append(flat(found.model))
    assert torch.equal(*ended)


def test_gradients_from_outside_are_not_taken_in():
    found, other = sgd(), sgd()
    for parameter in found.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for each in (found, other):
        each.step(*batch())
    assert torch.equal(flat(found.model), flat(other.model))
    assert all(p.grad is None for p in found.model.parameters())


@pytest.mark.parametrize("norm", [1e-3, 1e6])
def test_a_window_is_clipped_once(norm):
    """By the norm of the whole window's gradient: weights move by rate times limit, or as if there were none."""
    options = {"mini_batch_size": 1, "gradient_accumulation_steps": 4, "ppo_epochs": 1}
    found, free = sgd(max_grad_norm=norm, **options), sgd(**options)
    before = flat(found.model)
    for each in (found, free):
        each.step(*batch())
    moved, freely = flat(found.model) - before, flat(free.model) - before
    if norm > 1:
        assert torch.equal(moved, freely)
        return
    assert float(moved.norm()) == pytest.approx(0.1 * norm, rel=5e-3)  # rounded at the weights' 1e-7
    assert float(freely.norm()) > 0.01
    assert float(moved @ freely / (moved.norm() * freely.norm())) > 0.999


def test_the_learning_rate_is_that_of_the_update():
    """Halved, then divided by three: what a step logs is what it used, and the scheduler moves once a step."""
    model = tiny.causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    found = PPOTrainer(
        tiny.config(mini_batch_size=1), model, tiny.causal(1), tiny.tokenizer(), None, optimizer, None, None, scheduler
    )
    logged = [found.step(*batch(seed=step))["ppo/learning_rate"] for step in range(3)]
    assert logged == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert scheduler.last_epoch == 3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert tiny.trainer(learning_rate=0.02).step(*batch())["ppo/learning_rate"] == 0.02


def test_the_coefficient_moves_once_a_step_by_the_batch():
    """coefficient * (1 + error * 4 / 40), the error of KL over target held in +-0.2; logged is the one in force."""
    found = tiny.trainer(target=1.0, horizon=40.0, init_kl_coef=0.3)
    value = 0.3
    for step in range(3):
        stats = found.step(*batch(seed=step))
        assert stats["objective/kl_coef"] == pytest.approx(value, rel=1e-12)
        value *= 1 + min(max(stats["objective/kl"] / 1.0 - 1, -0.2), 0.2) * 4 / 40
        assert found.kl_ctl.value == pytest.approx(value, rel=1e-6)
    assert value != 0.3


def test_a_fixed_coefficient_stays():
    found = tiny.trainer(adap_kl_ctrl=False, init_kl_coef=0.3, horizon=1.0)
    assert [found.step(*batch(seed=step))["objective/kl_coef"] for step in range(3)] == [0.3] * 3
    assert found.kl_ctl.value == 0.3


def test_scores_are_scaled_before_they_are_clipped():
    """0, 10, 20, 30 have mean 15 and deviation sqrt(500 / 3) = 12.91; clipped at 1 only after that."""
    found = tiny.trainer(use_score_scaling=True, use_score_norm=True, score_clip=1.0)
    shaped = found.shape_scores(tensor([0.0, 10.0, 20.0, 30.0])).tolist()
    assert shaped == pytest.approx([-1.0, -5 / 12.9099, 5 / 12.9099, 1.0], abs=1e-5)
    # Of eight scores, four of them 0: mean 7.5, squares 1400 - 8 * 56.25 = 950, deviation sqrt(950 / 7) = 11.650.
    assert found.shape_scores(torch.zeros(4)).tolist() == pytest.approx([-7.5 / 11.6496] * 4, abs=1e-5)
    plain_scaling = tiny.trainer(use_score_scaling=True)
    assert plain_scaling.shape_scores(tensor([0.0, 30.0])).tolist() == pytest.approx([0.0, 2**0.5], abs=1e-5)
    clipped = tiny.trainer(score_clip=2.5)
    assert clipped.shape_scores(tensor([-4.0, 1.0, 3.0])).tolist() == [-2.5, 1.0, 2.5]


def test_shaped_scores_are_what_is_learned_from():
    queries, responses, _ = batch()
    raw = [tensor(v) for v in (-9.0, 0.5, 0.25, 9.0)]
    found = [tiny.trainer(score_clip=1.0).step(queries, responses, raw)]
    found.append(tiny.trainer().step(queries, responses, [score.clamp(-1, 1) for score in raw]))
    same(*found, rtol=0, atol=0)
    assert found[0]["ppo/mean_scores"] == pytest.approx(0.1875)


@pytest.mark.parametrize("over", ["epoch", "last"])
def test_early_stopping(over):
    """With one mini-batch an epoch the first sees ratios of 1; on this batch the second goes too far."""
    options = {"mini_batch_size": 4, "ppo_epochs": 4, "early_stopping_over": over}
    free = tiny.trainer(target_kl=1e-6, **options)
    calls = counted(free)
    free.step(*batch(seed=7))
    assert len(calls) == 4
    stopped = tiny.trainer(target_kl=1e-6, early_stopping=True, **options)
    calls = counted(stopped)
    stats = stopped.step(*batch(seed=7))
    assert len(calls) == 2
    tokens = len(stats["ppo/policy/ratio"]) // 2
    assert stats["ppo/policy/ratio"][:tokens] == pytest.approx([1.0] * tokens, abs=1e-5)
    # The mean over the two mini-batches, the first of which has none.
    kl = 2 * stats["ppo/policy/policykl"]
    assert kl == pytest.approx(-np.log(stats["ppo/policy/ratio"][tokens:]).mean(), rel=1e-3, abs=1e-5)
    assert kl > 1e-3
    # One and a half times the target; the third epoch is about twice as far as the second.
    for limit, updates in ((0.9 * kl / 1.5, 2), (1.1 * kl / 1.5, 3), (1e3, 4)):
        found = tiny.trainer(target_kl=limit, early_stopping=True, **options)
        calls = counted(found)
        found.step(*batch(seed=7))
        assert len(calls) == updates


def test_fixed_lengths():
    """Every pass is as wide as the configuration says, and gives what passes of any width give."""
    found, free = sgd(pad_for_acceleration=True, pad_max_len=20, pad_max_input_len=9), sgd()
    shapes = []
    found.model.pretrained_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    queries, responses, scores = batch()
    stats = free.step(queries, responses, scores)
    padded = found.step(queries, responses, scores)
    assert {*shapes} == {(2, 20)}
    for name in ("objective/logprobs", "objective/ref_logprobs"):
        assert padded.pop(name).shape == (4, 19)
        stats.pop(name)
    same(padded, stats, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat(found.model), flat(free.model), rtol=0, atol=1e-5)
    del shapes[:]
    answers = [[row.tolist() for row in each.generate(queries, **GREEDY)] for each in (found, free)]
    assert shapes[0] == (4, 9)
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="a query has 10 tokens, more than the fixed length 9"):
        found.generate(torch.full((10,), 3), **GREEDY)


def test_dropout_is_off_in_a_step():
    """A policy with and without dropout makes the same step, in whatever mode it is; the mode stays."""
    plain_model, dropping = tiny.causal(), tiny.causal(dropout=0.5, head_dropout=0.5).train()
    dropping.load_state_dict(plain_model.state_dict())
    found = [tiny.trainer(model, tiny.causal(1)) for model in (dropping, plain_model)]
    same(*(each.step(*batch()) for each in found), rtol=1e-5, atol=1e-6)
    assert torch.equal(flat(dropping), flat(plain_model))
    assert all(part.training for part in dropping.modules())
    assert not any(part.training for part in plain_model.modules())


def test_holes_in_a_response_are_not_learned_from():
    """What a tool wrote at the end of a response may be anything: other tokens there make no difference."""
    queries, responses, scores = batch(equal=True)
    masks = [torch.ones_like(response) for response in responses]
    for mask in masks:
        mask[-2:] = 0
    others = [torch.cat([response[:-2], response[-2:].flip(0) % 5 + 2]) for response in responses]
    found = [tiny.trainer().step(queries, texts, scores, masks) for texts in (responses, others)]
    for name in ("ppo/loss/total", "objective/kl", "ppo/returns/mean", "ppo/mean_non_score_reward"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5), name
    assert len(found[0]["ppo/policy/ratio"]) == 2 * 4 * 4  # of six tokens four count
