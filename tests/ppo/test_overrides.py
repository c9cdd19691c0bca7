"""Subclasses of PPOTrainer in the manner of TRL's: what they override is called, in its order, and counts."""

import functools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ppo import PPOTrainer
from ppo.core import PPODecorators
from ppo.methods import CALLS
from ppo.parts import Parts
from tests.ppo import tiny
from tests.ppo.trials import QUIET, batch, flat

pytestmark = QUIET
SIZES = {"batch_size": 4, "mini_batch_size": 1, "gradient_accumulation_steps": 2, "ppo_epochs": 2}
UPDATE = ["batched_forward_pass", "train_minibatch", "loss"]
# TRL 0.11.4 makes these calls in this order, seen by a subclass of its own trainer.
OF_A_STEP = [
    "_step_safety_checker",
    "prepare_model_inputs",
    *["batched_forward_pass"] * 2,
    "compute_rewards",
    *["_kl_penalty"] * 4,
    "compute_advantages",
    *(UPDATE * 4 + ["_early_stop"]) * 2,
    "record_step_stats",
]


def made(cls, *parts, **changes):
    """A trainer of a subclass, its policy moved by plain SGD."""
    model = tiny.causal(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return cls(tiny.config(**SIZES | changes), model, tiny.causal(1), tiny.tokenizer(), *parts, optimizer=optimizer)


def recording(*names):
    """A subclass whose methods of these names note that they were called, and do what they did."""
    calls = []

    def noted(name):
        def method(self, *args, **kwargs):
            calls.append(name)
            return getattr(PPOTrainer, name)(self, *args, **kwargs)

        return method

    return type("Recording", (PPOTrainer,), {name: noted(name) for name in names}), calls


def test_a_step_makes_the_calls_of_trls_in_its_order(tmp_path):
    cls, calls = recording(*CALLS)
    found = made(cls, early_stopping=True, target_kl=100.0)
    assert calls == []
    queries, responses, scores = batch()
    found.step(queries, responses, scores)
    assert calls == OF_A_STEP
    calls.clear()
    found.generate(queries, max_new_tokens=2, do_sample=True, top_k=0)
    found.generate(queries[0], max_new_tokens=2, do_sample=True, top_k=0)
    assert calls == ["_generate_batched"]
    calls.clear()
    found.save_pretrained(tmp_path / "saved")
    assert calls == ["_save_pretrained", "create_model_card"]


def test_the_data_set_goes_through_the_methods():
    import datasets

    cls, calls = recording("prepare_dataloader", "_remove_unused_columns", "_set_signature_columns_if_needed")
    columns = {"query": ["a"] * 8, "extra": [1] * 8}
    made(cls, datasets.Dataset.from_dict(columns))
    assert calls == ["prepare_dataloader", "_remove_unused_columns", "_set_signature_columns_if_needed"]


@pytest.mark.parametrize("names", [["loss"], ["train_minibatch"], ["batched_forward_pass"], UPDATE])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (4, 1)])
def test_methods_that_do_what_they_did_change_no_number(names, sizes):
    """With responses of one length, for only then a mean of means is the mean over all tokens."""
    mini, accumulated = sizes
    changes = {"mini_batch_size": mini, "gradient_accumulation_steps": accumulated, "max_grad_norm": 0.5}
    cls, calls = recording(*names)
    ours, theirs = made(PPOTrainer, **changes), made(cls, **changes)
    for seed in (0, 1):
        wanted, told = (found.step(*batch(seed=seed, equal=True)) for found in (ours, theirs))
        assert {*told} == {*wanted}
        for name in wanted:
            if not name.startswith("time/"):
                np.testing.assert_allclose(told[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert {*calls} == {*names}
    torch.testing.assert_close(flat(theirs.model), flat(ours.model), rtol=0, atol=1e-6)
    assert (flat(ours.model) - flat(tiny.causal(0))).abs().max() > 1e-3


def test_the_mean_of_micro_batches_is_theirs():
    """Two micro-batches of 2 and 6 tokens in an update: each counts half, as in TRL. Else each token counts alike."""
    queries = [torch.tensor([3, 4])] * 2
    responses = [torch.tensor([5, 6]), torch.tensor([7, 8, 9, 10, 11, 12])]
    sizes = {"batch_size": 2, "ppo_epochs": 1}
    cls, _ = recording("loss")
    by_hand = made(PPOTrainer, **sizes)
    inputs = by_hand.prepare_model_inputs(queries, responses)
    with torch.no_grad():
        old, _, values, mask = by_hand.batched_forward_pass(by_hand.model, queries, responses, inputs)
        with by_hand.reference() as reference:
            other, *_ = by_hand.batched_forward_pass(reference, queries, responses, inputs)
        rewards, *_ = by_hand.compute_rewards(torch.tensor([1.0, -1.0]), old, other, mask)
        values, advantages, returns = by_hand.compute_advantages(values, rewards, mask)
    new, logits, vpreds, _ = by_hand.batched_forward_pass(by_hand.model, queries, responses, inputs, True)
    columns = (old, values, logits, vpreds, new, mask, advantages, returns)
    losses = [sum(by_hand.loss(*(column[row : row + 1] for column in columns))[:2]) for row in range(2)]
    by_hand.optimizer.zero_grad()
    ((losses[0] + losses[1]) / 2).backward()
    by_hand.optimizer.step()
    theirs, ours = made(cls, **sizes), made(PPOTrainer, **sizes)
    for found in (theirs, ours):
        found.step(queries, responses, [1.0, -1.0])
    torch.testing.assert_close(flat(theirs.model), flat(by_hand.model), rtol=0, atol=1e-6)
    assert (flat(ours.model) - flat(by_hand.model)).abs().max() > 1e-4


class Still(PPOTrainer):
    """Its loss is 0."""

    def loss(self, *args):
        policy, value, stats = super().loss(*args)
        return policy * 0.0, value * 0.0, stats | {"loss/mine": torch.tensor(7.0)}


def test_a_loss_of_zero_moves_nothing():
    found = made(Still)
    told = found.step(*batch())
    assert torch.equal(flat(found.model), flat(tiny.causal(0)))
    assert told["ppo/loss/mine"] == 7.0


class AsInTRL(PPOTrainer):
    """Its update is written with the attributes of TRL's trainer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def train_minibatch(self, old_logprobs, values, logprobs, logits, vpreds, mask, advantages, returns):
        self.model.train()
        loss_p, loss_v, stats = self.loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        self.accelerator.backward(loss_p + loss_v)
        if self.config.max_grad_norm is not None and self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model_params, self.config.max_grad_norm)
        self.seen.append((self.accelerator.sync_gradients, stats["loss/total"].item()))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return stats


def test_an_update_in_trls_words_is_the_same_update():
    changes = {"max_grad_norm": 0.3, "mini_batch_size": 2, "gradient_accumulation_steps": 2}
    ours, theirs = made(PPOTrainer, **changes), made(AsInTRL, **changes)
    mode = theirs.model.training
    for seed in (0, 1):
        for found in (ours, theirs):
            found.step(*batch(seed=seed, equal=True))
    assert [synchronised for synchronised, _ in theirs.seen] == [False, True] * 4
    torch.testing.assert_close(flat(theirs.model), flat(ours.model), rtol=0, atol=1e-6)
    assert theirs.model.training == mode
    accelerator = theirs.accelerator
    assert isinstance(accelerator, Accelerator)
    assert (accelerator.sync_gradients, accelerator.gradient_accumulation_steps) == (True, 1)


def test_recomputed_activations_of_an_update_in_trls_words_have_no_dropout():
    """It sets training mode between forward and backward pass, in which the layers are computed again."""
    weights = []
    for checkpointing in (False, True):
        model = tiny.causal(0, dropout=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = tiny.config(**SIZES, gradient_checkpointing=checkpointing)
        found = AsInTRL(config, model, tiny.causal(1), tiny.tokenizer(), optimizer=optimizer)
        found.step(*batch())
        weights.append(flat(model))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    assert (weights[0] - flat(tiny.causal(0, dropout=0.5))).abs().max() > 1e-3


class Warmer(PPOTrainer):
    """Log-probs at temperature 2, in old and new passes alike."""

    def batched_forward_pass(self, model, queries, responses, model_inputs, return_logits=False, response_masks=None):
        _, logits, values, masks = super().batched_forward_pass(
            model, queries, responses, model_inputs, True, response_masks
        )
        labels = model_inputs["input_ids"][:, 1:, None]
        logprobs = (logits / 2).log_softmax(-1).gather(-1, labels)[..., 0]
        return logprobs, logits if return_logits else None, values, masks


def test_an_overridden_forward_pass_is_that_of_updates_too():
    """Else the ratio would not begin at 1."""
    found, plain = made(Warmer, ppo_epochs=1, gradient_accumulation_steps=4), made(PPOTrainer, logit_temperature=2.0)
    told, wanted = found.step(*batch()), plain.step(*batch())
    np.testing.assert_allclose(told["ppo/policy/ratio"], 1.0, rtol=1e-5)
    assert told["objective/kl"] == pytest.approx(wanted["objective/kl"], rel=1e-5)


class Doubled(PPOTrainer):
    """Every other part altered, in the types of TRL's."""

    def _step_safety_checker(self, batch_size, queries, responses, scores, masks=None):
        queries, responses, scores, masks = super()._step_safety_checker(batch_size, queries, responses, scores, masks)
        return queries, responses, [score * 2 for score in scores], masks

    def _kl_penalty(self, logprob, ref_logprob):
        assert logprob.dim() == 1
        return super()._kl_penalty(logprob, ref_logprob) * 3

    def compute_advantages(self, values, rewards, mask):
        values, advantages, returns = super().compute_advantages(values, rewards, mask)
        return values, advantages * 0 + 0.5, returns

    def record_step_stats(self, kl_coef, **data):
        stats = super().record_step_stats(kl_coef, **data)
        # As TRL's: a row for each mini-batch.
        stats["mine/loss"] = torch.mean(data["train_stats"]["loss/total"], axis=0)
        stats["mine/rows"] = len(data["train_stats"]["loss/total"])
        return stats

    def _early_stop(self, policykl):
        assert isinstance(policykl, torch.Tensor)
        return True


def test_every_other_part_counts():
    queries, responses, scores = batch()
    found, plain = made(Doubled, early_stopping=True, ppo_epochs=3), made(PPOTrainer, ppo_epochs=1)
    told, wanted = found.step(queries, responses, scores), plain.step(queries, responses, scores)
    assert told["ppo/mean_scores"] == pytest.approx(2 * wanted["ppo/mean_scores"])
    assert told["objective/kl"] == pytest.approx(3 * wanted["objective/kl"], rel=1e-5)
    assert told["ppo/policy/advantages_mean"] == pytest.approx(0.5)
    assert told["mine/rows"] == 4  # one epoch
    assert told["mine/loss"] == pytest.approx(told["ppo/loss/total"])


class Reversed(PPOTrainer):
    def prepare_model_inputs(self, queries, responses):
        inputs = super().prepare_model_inputs(queries, responses)
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def _generate_batched(self, model, query_tensors, **options):
        return [found.flip(0) for found in super()._generate_batched(model, query_tensors, **options)]

    def prepare_dataloader(self, dataset, data_collator=None):
        return [0, 1, 2]

    def _save_pretrained(self, save_directory):
        (save_directory.parent / "mine").write_text("here")


def test_inputs_responses_loader_and_folder_may_be_ones_own(tmp_path):
    from tests.ppo.trials import GREEDY, Numbers

    found, plain = made(Reversed, Numbers(8)), made(PPOTrainer)
    assert list(found.dataloader) == [0, 1, 2]
    told, wanted = found.step(*batch()), plain.step(*batch())
    assert told["ppo/loss/total"] == pytest.approx(wanted["ppo/loss/total"])
    queries = batch()[0]
    for mine, own in zip(found.generate(queries, **GREEDY), plain.generate(queries, **GREEDY), strict=True):
        assert torch.equal(mine, own.flip(0))
    found.save_pretrained(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class Plain(PPOTrainer):
    """Rewards as a plain tuple, of `number` tensors."""

    number = 3

    def compute_rewards(self, scores, logprobs, ref_logprobs, masks):
        rewards, penalty, kl = super().compute_rewards(scores, logprobs, ref_logprobs, masks)
        return (rewards, penalty, kl)[: self.number]


@pytest.mark.parametrize("number", [2, 3])
def test_rewards_may_be_a_plain_tuple(number):
    """Intel's, and TRL's before 0.7.9, have no KL: the log-ratio is told."""
    cls = type("Number", (Plain,), {"number": number})
    told, wanted = made(cls).step(*batch()), made(PPOTrainer).step(*batch())
    assert told["objective/kl"] == pytest.approx(wanted["objective/kl"])
    assert told["ppo/loss/total"] == pytest.approx(wanted["ppo/loss/total"])


def test_methods_of_one_object_are_heard_too():
    found = made(PPOTrainer)
    calls = []
    loss = found.loss

    def mine(*args):
        calls.append(1)
        policy, value, stats = loss(*args)
        return policy * 0.0, value * 0.0, stats

    found.loss = mine
    found.step(*batch())
    assert len(calls) == 8
    assert torch.equal(flat(found.model), flat(tiny.causal(0)))


class Decorated(PPOTrainer):
    @PPODecorators.empty_device_cache()
    def batched_forward_pass(self, *args, **kwargs):
        return super().batched_forward_pass(*args, **kwargs)

    @staticmethod
    def _kl_penalty(logprob, ref_logprob):
        return torch.zeros_like(logprob)


def test_decorated_and_static_methods():
    assert made(Decorated).step(*batch())["objective/kl"] == 0.0


def test_the_guard_leaves_out_mini_batches_of_a_window_here_too():
    """Nothing but the momentum of others may move: an update whose mini-batches are all left out is none."""
    cls, _ = recording("loss")
    found = made(cls, ratio_threshold=1e-6)
    with pytest.warns(UserWarning, match="8 of 8 mini-batches changed nothing"):
        told = found.step(*batch())
    assert told["ppo/policy/skipped"] == 8
    assert torch.equal(flat(found.model), flat(tiny.causal(0)))


# What cannot be heard is refused where the class is made


class Beside:
    def loss(self, old_logprobs, values, rewards, logits, vpreds, logprobs, mask):
        """The parameters of TRL before 0.6."""


DEAF = {
    "generate_model_card": (lambda self: None, "would never be called: override create_model_card in its place"),
    "train_minibatch": (lambda self, batch: None, r"cannot take what a step calls it with, 8 arguments"),
    "compute_rewards": (lambda self, scores: None, "4 arguments .* those of TRL 0.6 to 0.11"),
    "record_step_stats": (lambda self, stats: None, "kl_coef, masks, .* by name"),
    "_early_stop": (True, "is True, and a step calls it: make it a method"),
    "compute_advantages": (staticmethod(lambda values: None), "3 arguments"),
    "batched_forward_pass": (lambda self, model, queries, responses, inputs: None, "return_logits"),
}


@pytest.mark.parametrize("name", DEAF)
def test_what_would_not_be_heard_is_refused(name):
    method, said = DEAF[name]
    with pytest.raises(TypeError, match=rf"Mine\.{name}.*{said}"):
        type("Mine", (PPOTrainer,), {name: method})


def test_what_comes_from_a_class_beside_is_looked_at_too():
    with pytest.raises(TypeError, match=r"Mine\.loss\(self, old_logprobs, values, rewards, .* 8 arguments"):
        type("Mine", (Beside, PPOTrainer), {})


def test_every_call_fits_the_own_methods():
    """What is asked of subclasses, asked of the class itself."""
    every = {name: functools.partialmethod(getattr(PPOTrainer, name)) for name in CALLS}
    assert issubclass(type("Mine", (PPOTrainer,), every), Parts)
    assert nn.Module not in PPOTrainer.__mro__


def test_an_overridden_update_keeps_answers_to_a_prompt_together():
    class Noting(PPOTrainer):
        def batched_forward_pass(self, model, queries, *arguments, **options):
            if torch.is_grad_enabled():
                met.append([query.tolist() for query in queries])
            return super().batched_forward_pass(model, queries, *arguments, **options)

    met = []
    queries, responses, scores = tiny.batch(8)
    queries = [queries[i // 2] for i in range(8)]
    config = tiny.config(batch_size=8, mini_batch_size=2, ppo_epochs=3, group_mini_batches=True)
    trainer = Noting(config, tiny.causal(), None, tiny.tokenizer())
    met.clear()
    trainer.step(queries, responses, scores)
    assert len(met) == 12 and all(one == other for one, other in met)
