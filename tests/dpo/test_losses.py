import inspect
import math

import pytest
import torch

from dpo.losses import LOSSES, PairLogps, dpo_loss, margin
from tests.oracles import dpo_oracle


def random_pairs(count=16, dtype=torch.float64, seed=0):
    """Policy and reference log-probs of `count` pairs, of the size that real completions have."""
    generator = torch.Generator().manual_seed(seed)
    values = -100 * torch.rand(4, count, generator=generator, dtype=torch.float64)
    return PairLogps(*values[:2].to(dtype)), PairLogps(*values[2:].to(dtype))


def test_margin_by_hand():
    """(-1 - -3) - (-5 - -4) = 2 - -1 = 3."""
    policy = PairLogps(torch.tensor([-1.0]), torch.tensor([-5.0]))
    reference = PairLogps(torch.tensor([-3.0]), torch.tensor([-4.0]))
    assert margin(policy, reference).tolist() == [3.0]


def test_dpo_by_hand():
    """Margin ln 3 with beta 1: sigma = 3/4, so the loss is ln 4/3; smoothed by 1/4: 3/4 ln 4/3 + 1/4 ln 4."""
    policy = PairLogps(torch.tensor([math.log(3)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    reference = PairLogps(torch.zeros(1), torch.zeros(1))
    assert dpo_loss(policy, reference, beta=1.0).item() == pytest.approx(math.log(4 / 3))
    smoothed = dpo_loss(policy, reference, beta=1.0, label_smoothing=0.25).item()
    assert smoothed == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_equals_the_oracle(beta, label_smoothing):
    policy, reference = random_pairs()
    loss = dpo_loss(policy, reference, beta=beta, label_smoothing=label_smoothing)
    expected = [
        dpo_oracle.dpo_loss(*values, beta=beta, label_smoothing=label_smoothing)
        for values in torch.stack([*policy, *reference], 1).tolist()
    ]
    assert loss.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_are_right(label_smoothing):
    policy, reference = random_pairs(count=5)
    leaves = [value.clone().requires_grad_() for value in (*policy, *reference)]

    def loss(chosen, rejected, reference_chosen, reference_rejected):
        ours, theirs = PairLogps(chosen, rejected), PairLogps(reference_chosen, reference_rejected)
        return dpo_loss(ours, theirs, beta=0.05, label_smoothing=label_smoothing)

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-8)


def test_policy_equal_to_reference_gives_ln_2():
    policy, _ = random_pairs(dtype=torch.float32)
    loss = dpo_loss(policy, policy, beta=0.1)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([math.log(2)] * 16, abs=1e-6)


def test_swapping_the_sides_turns_the_margin_round():
    """-log sigma(h) + log sigma(-h) = -h, so the swapped loss is larger by h."""
    policy, reference = random_pairs()
    loss = dpo_loss(policy, reference, beta=0.1)
    swapped = dpo_loss(PairLogps(*policy[::-1]), PairLogps(*reference[::-1]), beta=0.1)
    torch.testing.assert_close(swapped - loss, 0.1 * margin(policy, reference))


def test_swapping_the_sides_swaps_the_smoothing():
    """A label that is wrong with chance e is the other label wrong with chance 1 - e."""
    policy, reference = random_pairs()
    loss = dpo_loss(policy, reference, beta=0.1, label_smoothing=0.3)
    swapped = dpo_loss(PairLogps(*policy[::-1]), PairLogps(*reference[::-1]), beta=0.1, label_smoothing=0.7)
    torch.testing.assert_close(swapped, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_margins_stay_finite(dtype):
    """beta 1, margins of +-10,000: the loss is 0 and 10,000, its slope 0 and -1."""
    chosen = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)
    loss = dpo_loss(PairLogps(chosen, zero), PairLogps(zero, zero), beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4]
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_a_larger_beta_presses_harder():
    """At margin 0 the slope is -beta/2."""
    for beta in (0.1, 0.5):
        chosen = torch.zeros(1, requires_grad=True)
        zero = torch.zeros(1)
        dpo_loss(PairLogps(chosen, zero), PairLogps(zero, zero), beta=beta).sum().backward()
        assert chosen.grad.item() == pytest.approx(-beta / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_two_pairs_and_named_numbers(name):
    """Options come from a config by name: none may be positional, swallow what it does not know, or go unused."""
    policy, reference = random_pairs()
    _, _, *options = inspect.signature(LOSSES[name]).parameters.values()
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
    assert "beta" in {option.name for option in options}
    usual = {option.name: 0.1 for option in options}
    before = LOSSES[name](policy, reference, **usual)
    assert before.shape == (16,)
    for option in options:
        changed = LOSSES[name](policy, reference, **{**usual, option.name: 0.3})
        assert not torch.equal(changed, before)
    with pytest.raises(TypeError, match="no_such_option"):
        LOSSES[name](policy, reference, beta=0.1, no_such_option=1.0)


# Of every loss but the sigmoid one: its options beside beta, and its value by hand at c = r = 0 with beta 0.1.
OTHERS = {
    "hinge": ({}, 1.0),  # max(0, 1 - 0)
    "robust": ({"label_smoothing": 0.2}, math.log(2)),  # (0.8 - 0.2) ln 2 / 0.6
    "exo_pair": ({"label_smoothing": 0.2}, -math.log(0.8)),  # ln 1/2 - (ln 0.8 + ln 0.2) / 2 = -ln(2 sqrt 0.16)
    "nca_pair": ({}, 2 * math.log(2)),  # ln 2 + ln 2 / 2 + ln 2 / 2
    "bco_pair": ({}, 2 * math.log(2)),
    "sppo_hard": ({}, 50.0),  # 5^2 + 5^2
    "apo_zero": ({}, 1.0),  # 1 - 1/2 + 1/2
    "apo_down": ({}, 1.0),
    "discopop": ({"tau": 0.05}, (math.log(2) + 1) / 2),
}


def test_every_loss_is_tested_here():
    assert LOSSES.keys() == {"sigmoid", *OTHERS}


@pytest.mark.parametrize("name", OTHERS)
def test_a_loss_by_hand(name):
    options, expected = OTHERS[name]
    zero = PairLogps(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert LOSSES[name](zero, zero, beta=0.1, **options).item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("name", OTHERS)
def test_a_loss_equals_the_oracle(name, beta):
    """Of log-ratios up to +-8: there the oracle's own probabilities are above 0."""
    options, _ = OTHERS[name]
    generator = torch.Generator().manual_seed(1)
    ratios = 8 * (2 * torch.rand(2, 16, generator=generator, dtype=torch.float64) - 1)
    zero = torch.zeros(16, dtype=torch.float64)
    loss = LOSSES[name](PairLogps(*ratios), PairLogps(zero, zero), beta=beta, **options)
    named = {"e": options.get("label_smoothing", 0.0), "tau": options.get("tau", 0.05)}
    expected = [dpo_oracle.pair_loss(name, c, r, beta, **named) for c, r in ratios.T.tolist()]
    assert loss.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_the_gradients_of_a_loss_are_right(name):
    policy, reference = random_pairs(count=5)
    leaves = [value.clone().requires_grad_() for value in (*policy, *reference)]

    def loss(chosen, rejected, reference_chosen, reference_rejected):
        ours, theirs = PairLogps(chosen, rejected), PairLogps(reference_chosen, reference_rejected)
        return LOSSES[name](ours, theirs, beta=0.02, **OTHERS[name][0])

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OTHERS)
def test_a_loss_stays_finite_at_huge_margins(name, dtype):
    sides = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    zero = torch.zeros(3, dtype=dtype)
    loss = LOSSES[name](PairLogps(*sides), PairLogps(zero, zero), beta=1.0, **OTHERS[name][0])
    loss.sum().backward()
    assert loss.isfinite().all()
    assert sides.grad.isfinite().all()
