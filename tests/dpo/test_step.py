import math

import pytest
import torch

from dpo.batch import collate_pairs
from dpo.logprobs import LogprobModel
from dpo.step import pair_logps, preference_step, sft_step
from tests.dpo.tiny import CONFIGS, sequence, sharpen, tiny_model
from tests.oracles import dpo_oracle

CHOSEN = [sequence([1, 2, 3], [4, 5, 6]), sequence([7], [8, 9, 10, 11]), sequence([12, 13], [14])]
REJECTED = [sequence([1, 2, 3], [15]), sequence([7], [16, 17]), sequence([12, 13], [18, 19, 20, 21, 22])]
OPTIONS = {"beta": 0.1, "label_smoothing": 0.0}


def policy_and_reference(name):
    return sharpen(tiny_model(name), seed=1, size=0.1), tiny_model(name)


def oracle_loss(policy, reference, chosen, rejected, options):
    """One pair's loss, from the logits of each sequence alone."""

    def logp(model, one):
        ids = [*one.prompt_ids, *one.completion_ids]
        scored = [False] * len(one.prompt_ids) + list(one.mask)
        return dpo_oracle.completion_logp(model(torch.tensor([ids]))[0].tolist(), ids, scored)

    values = [logp(model, one) for model in (policy, reference) for one in (chosen, rejected)]
    return dpo_oracle.dpo_loss(*values, **options)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_the_oracle(name, label_smoothing):
    policy, reference = policy_and_reference(name)
    options = {"beta": 0.1, "label_smoothing": label_smoothing}
    batch = collate_pairs(CHOSEN, REJECTED, pad_id=0)
    with torch.no_grad():
        logps = [LogprobModel(model)(batch.input_ids, batch.completion_mask) for model in (policy, reference)]
    sums = preference_step(*logps, "sigmoid", options)
    expected = [oracle_loss(policy, reference, *pair, options) for pair in zip(CHOSEN, REJECTED, strict=True)]
    assert min(abs(value - math.log(2)) for value in expected) > 1e-3  # or else two equal models would pass too
    assert sums.loss.item() / 3 == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert sums.metrics["loss"].item() == sums.loss.item()


@pytest.mark.parametrize("name", CONFIGS)
def test_policy_equal_to_reference_gives_ln_2_and_still_learns(name):
    policy, reference = tiny_model(name), tiny_model(name)
    batch = collate_pairs(CHOSEN, REJECTED, pad_id=0)
    with torch.no_grad():
        reference_logps = LogprobModel(reference)(batch.input_ids, batch.completion_mask)
    sums = preference_step(
        LogprobModel(policy)(batch.input_ids, batch.completion_mask), reference_logps, "sigmoid", OPTIONS
    )
    assert sums.loss.item() / 3 == pytest.approx(math.log(2), abs=1e-6)
    assert sums.metrics["rewards/accuracies"].item() == 0
    sums.loss.backward()
    assert sum(p.grad.abs().sum() for p in policy.parameters() if p.grad is not None) > 0.01


def test_rewards_are_in_units_of_beta():
    """Log-ratios 2 - 1 = 1 and 3 - 7 = -4, times 0.25."""
    policy, reference = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [7.0]])
    metrics = preference_step(policy, reference, "sigmoid", {"beta": 0.25}).metrics
    assert (metrics["rewards/chosen"].item(), metrics["rewards/rejected"].item()) == (0.25, -1.0)


def test_micro_batches_add_up():
    """Loss and gradients of three micro-batches of one pair are those of one batch of three."""
    policy, reference = policy_and_reference("llama")

    def run(groups):
        policy.zero_grad()
        total = 0.0
        for group in groups:
            batch = collate_pairs([CHOSEN[i] for i in group], [REJECTED[i] for i in group], pad_id=0)
            with torch.no_grad():
                reference_logps = LogprobModel(reference)(batch.input_ids, batch.completion_mask)
            policy_logps = LogprobModel(policy)(batch.input_ids, batch.completion_mask)
            sums = preference_step(policy_logps, reference_logps, "sigmoid", OPTIONS)
            sums.loss.backward()
            total += sums.metrics["loss"].item()
        return total, torch.cat([p.grad.flatten() for p in policy.parameters()])

    loss, gradients = run([[0, 1, 2]])
    split_loss, split_gradients = run([[0], [1], [2]])
    assert split_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(split_gradients, gradients, atol=1e-6, rtol=1e-5)


def test_pair_logps_by_hand():
    """Rows 0 and 1 are the chosen sides, rows 2 and 3 the rejected ones."""
    logps = pair_logps(torch.tensor([[-1.0, -2.0], [0.0, -4.0], [-8.0, 0.0], [-16.0, -32.0]]))
    assert (logps.chosen.tolist(), logps.rejected.tolist()) == ([-3.0, -4.0], [-8.0, -48.0])


def test_sft_by_hand():
    """-(-1 - 2 - 4) = 7, and its slope in every scored log-prob is -1."""
    logps = torch.tensor([[0.0, -1.0, -2.0], [0.0, -4.0, 0.0]], requires_grad=True)
    sums = sft_step(logps)
    sums.loss.backward()
    assert sums.metrics["loss"].item() == sums.loss.item() == 7.0
    assert logps.grad.tolist() == [[-1.0] * 3] * 2
    assert not sums.metrics["loss"].requires_grad
