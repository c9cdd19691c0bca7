"""What the class DPO computes. How it behaves as a module is in test_dpo_module.py."""

import math

import pytest
import torch
from torch import nn
from x_transformers.dpo import DPO as InstalledDPO

from dpo import DPO
from tests.dpo.tiny import bigram_model, moved_policy, pair_tensors, transformer_wrapper
from tests.oracles import dpo_oracle

# Two prompt tokens, four response tokens, two pads; apart from the prompt no token is in both.
PREFERRED = torch.tensor([[3, 4, 5, 6, 7, 8, 0, 0]])
UNPREFERRED = torch.tensor([[3, 4, 9, 10, 11, 12, 0, 0]])
PROMPT = torch.arange(8).unsqueeze(0) < 2


def scored_places(dpo):
    """Which rows and columns of the bigram table get a gradient: tokens predicted *from*, and tokens predicted."""
    dpo(PREFERRED, UNPREFERRED, prompt_mask=PROMPT).backward()
    gradient = dpo.policy_model.weight.grad
    # The loss raises preferred tokens and lowers unpreferred ones: the signs tell targets from mere softmax mass.
    return gradient.any(1).nonzero().flatten().tolist(), gradient


def test_the_response_tokens_are_scored_and_nothing_else():
    """Targets 5, 6, 7, 8 are predicted from 4, 5, 6, 7, targets 9, 10, 11, 12 from 4, 9, 10, 11."""
    rows, gradient = scored_places(DPO(bigram_model(), pad_id=0))
    assert rows == [4, 5, 6, 7, 9, 10, 11]
    pushed_up = [(source, target) for source, target in (gradient < 0).nonzero().tolist() if source in (4, 5, 6, 7)]
    assert pushed_up == [(4, 5), (5, 6), (6, 7), (7, 8)]


def test_the_installed_class_skips_the_first_response_token_and_scores_a_pad():
    """Its rows are 5, 6, 7, 8 and 9 ... 12: it never predicts 5, and it raises the chance of pad 0 after token 8."""
    rows, gradient = scored_places(InstalledDPO(bigram_model(), pad_id=0))
    assert rows == [5, 6, 7, 8, 9, 10, 11, 12]
    pushed_up = [(source, target) for source, target in (gradient < 0).nonzero().tolist() if source in (5, 6, 7, 8)]
    assert pushed_up == [(5, 6), (6, 7), (7, 8), (8, 0)]


def test_known_log_probs_by_hand():
    """Token t+1 follows t with a chance of e^-t here, so that tokens 5, 6, 7, 8 have log-probs -4, -5, -6, -7.

    Their mean is -5.5 and their sum -22. The reference gives every one of 14 tokens 1/14, the unpreferred side too:
    with the policy's 1/14 there as well, the margin is -5.5 + ln 14, or -22 + 4 ln 14.
    """
    policy = nn.Embedding(14, 14)
    with torch.no_grad():
        policy.weight.zero_()
        for source in (4, 5, 6, 7):
            # e^-source for the next token, the rest shared by 13 others
            policy.weight[source] = math.log((1 - math.exp(-source)) / 13)
            policy.weight[source, source + 1] = -source
    unpreferred = torch.tensor([[3, 2, 9, 10, 11, 12, 0, 0]])  # from 2, 9, 10, 11: rows that are still uniform
    for reduction, margin in (("mean", -5.5 + math.log(14)), ("sum", -22 + 4 * math.log(14))):
        dpo = DPO(policy, beta=0.5, pad_id=0, reduction=reduction)
        nn.init.zeros_(dpo.ref_model.weight)
        loss = dpo(PREFERRED, unpreferred, prompt_mask=PROMPT)
        assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5 * margin)), abs=1e-6)


def oracle_loss(dpo, preferred, unpreferred, prompt_mask, reduction="mean"):
    """The mean over pairs of eq. 7, with log-probs of targets that are neither prompt nor pad 0."""
    logp = dpo_oracle.mean_token_logp if reduction == "mean" else dpo_oracle.completion_logp
    losses = []
    for row in range(len(preferred)):
        values = []
        for model in (dpo.policy_model, dpo.ref_model):
            for seq in (preferred, unpreferred):
                scored = [
                    not prompt and token != 0
                    for prompt, token in zip(prompt_mask[row].tolist(), seq[row].tolist(), strict=True)
                ]
                logits = model(seq[row : row + 1])[0].tolist()
                values.append(logp(logits, seq[row].tolist(), scored))
        losses.append(dpo_oracle.dpo_loss(*values, beta=dpo.beta))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["x-rotary", "x-absolute-tied"])
def test_equals_the_target_aligned_oracle(name, reduction):
    dpo = moved_policy(name, beta=0.3, pad_id=0, reduction=reduction)
    preferred, unpreferred, prompt_mask = pair_tensors()
    loss = dpo(preferred, unpreferred, prompt_mask=prompt_mask).item()
    assert loss == pytest.approx(oracle_loss(dpo, preferred, unpreferred, prompt_mask, reduction), abs=1e-6)
    assert abs(loss - math.log(2)) > 1e-3


def test_differs_from_the_installed_class():
    preferred, unpreferred, prompt_mask = pair_tensors()
    ours = moved_policy("x-rotary", beta=0.3, pad_id=0)(preferred, unpreferred, prompt_mask=prompt_mask)
    theirs = moved_policy("x-rotary", InstalledDPO, beta=0.3, pad_id=0)(preferred, unpreferred, prompt_mask=prompt_mask)
    assert abs(ours.item() - theirs.item()) > 1e-3


def test_agrees_with_the_installed_class_where_its_mask_does_not_matter():
    """Without pads, and with a prompt of one token, every target is scored, so that no place can be off by one."""
    preferred, unpreferred, _ = pair_tensors()
    preferred, unpreferred = preferred.clamp(min=1), unpreferred.clamp(min=1)
    unpreferred[:, 0] = preferred[:, 0]
    prompt_mask = (torch.arange(9) < 1).expand(4, 9)
    ours = moved_policy("x-rotary", beta=0.3)(preferred, unpreferred, prompt_mask=prompt_mask)
    # Theirs reads a mask one place late: it scores every target where the prompt mask is empty.
    theirs = moved_policy("x-rotary", InstalledDPO, beta=0.3)(
        preferred, unpreferred, prompt_mask=torch.zeros_like(prompt_mask)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def loss_and_gradients(dpo, *sequences, **masks):
    dpo.zero_grad()
    loss = dpo(*sequences, **masks)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in dpo.parameters() if p.grad is not None])


def assert_same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["x-rotary", "x-absolute-tied"])
def test_what_stands_in_the_padding_changes_nothing(name):
    dpo = moved_policy(name)
    preferred, unpreferred, prompt_mask = pair_tensors()
    masks = {"prompt_mask": prompt_mask, "preferred_seq_mask": preferred != 0, "unpreferred_seq_mask": unpreferred != 0}
    assert not masks["preferred_seq_mask"].all()
    before = loss_and_gradients(dpo, preferred, unpreferred, **masks)
    filled = [torch.where(seq == 0, 17, seq) for seq in (preferred, unpreferred)]
    assert_same(before, loss_and_gradients(dpo, *filled, **masks))
    assert_same(
        before, loss_and_gradients(moved_policy(name, pad_id=0), preferred, unpreferred, prompt_mask=prompt_mask)
    )


@pytest.mark.parametrize("name", ["x-rotary", "x-absolute-tied"])
def test_more_padding_changes_nothing(name):
    dpo = moved_policy(name, pad_id=0)
    preferred, unpreferred, prompt_mask = pair_tensors()
    before = loss_and_gradients(dpo, preferred, unpreferred, prompt_mask=prompt_mask)
    wider = [nn.functional.pad(seq, (0, 5)) for seq in (preferred, unpreferred)]
    assert_same(before, loss_and_gradients(dpo, *wider, prompt_mask=nn.functional.pad(prompt_mask, (0, 5))))


def test_the_first_response_token_counts():
    """Even where it is the only one: nothing later can have carried the change."""
    dpo = moved_policy("x-rotary", pad_id=0)
    prompt_mask = torch.tensor([[True, True, False, False]])
    unpreferred = torch.tensor([[1, 2, 5, 0]])
    losses = {dpo(torch.tensor([[1, 2, first, 0]]), unpreferred, prompt_mask=prompt_mask).item() for first in (3, 4, 6)}
    assert len(losses) == 3


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["x-rotary", "x-absolute-tied"])
def test_policy_equal_to_reference_gives_ln_2_and_still_learns(name, reduction):
    dpo = DPO(transformer_wrapper(name), pad_id=0, reduction=reduction)
    loss, gradients = loss_and_gradients(dpo, *pair_tensors()[:2], prompt_mask=pair_tensors()[2])
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert gradients.abs().max() > 1e-3


def test_swapping_the_sides_turns_the_loss_round():
    """One pair: loss = -log sigma(h), swapped = -log sigma(h) + h, so that e^-loss + e^-swapped = 1."""
    dpo = moved_policy("x-rotary", beta=0.3, pad_id=0)
    preferred, unpreferred, prompt_mask = pair_tensors(rows=1)
    loss = dpo(preferred, unpreferred, prompt_mask=prompt_mask).item()
    swapped = dpo(unpreferred, preferred, prompt_mask=prompt_mask).item()
    assert loss != pytest.approx(swapped, abs=1e-3)
    assert math.exp(-loss) + math.exp(-swapped) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["x-rotary", "x-absolute-tied"])
def test_gradients_equal_finite_differences(name):
    """(f(w + e) - f(w - e)) / 2e in float64, at the steepest entry of every parameter."""
    dpo = moved_policy(name, beta=0.3, pad_id=0).double()
    preferred, unpreferred, prompt_mask = pair_tensors()

    def loss():
        return dpo(preferred, unpreferred, prompt_mask=prompt_mask)

    loss().backward()
    step = 1e-5
    checked = 0
    for parameter in dpo.parameters():
        if parameter.grad is None:
            continue
        place = parameter.grad.abs().argmax()
        weights, slope = parameter.data.view(-1), parameter.grad.view(-1)[place].item()
        weights[place] += step
        with torch.no_grad():
            above = loss().item()
            weights[place] -= 2 * step
            below = loss().item()
        weights[place] += step
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-9)
        checked += abs(slope) > 1e-4
    assert checked > 10
