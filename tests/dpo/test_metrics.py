import pytest
import torch

from dpo.losses import PairLogps
from dpo.metrics import preference_sums


def test_by_hand():
    """beta 0.5. Chosen log-ratios 4, -2, 1 -> rewards 2, -1, 0.5; rejected -2, 2, 1 -> -1, 1, 0.5.

    Margins 3, -2, 0. One pair of three is right: the tie counts as wrong.
    """
    policy = PairLogps(torch.tensor([-6.0, -12.0, -3.0]), torch.tensor([-9.0, -7.0, -4.0]))
    reference = PairLogps(torch.tensor([-10.0, -10.0, -4.0]), torch.tensor([-7.0, -9.0, -5.0]))
    sums = preference_sums(policy, reference, beta=0.5)
    assert {name: value.item() for name, value in sums.items()} == {
        "rewards/chosen": 1.5,
        "rewards/rejected": 0.5,
        "rewards/margins": 1.0,
        "rewards/accuracies": 1,
        "logps/chosen": -21.0,
        "logps/rejected": -20.0,
    }


def test_sums_of_parts_are_the_sum_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    whole = preference_sums(PairLogps(*values[:2]), PairLogps(*values[2:]), beta=0.1)
    parts = [
        preference_sums(PairLogps(*part[:2]), PairLogps(*part[2:]), beta=0.1)
        for part in (values[:, :3], values[:, 3:4], values[:, 4:])
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_metrics_carry_no_gradient():
    chosen = torch.zeros(2, requires_grad=True)
    sums = preference_sums(PairLogps(chosen, chosen), PairLogps(torch.ones(2), torch.ones(2)), beta=0.1)
    assert not any(value.requires_grad for value in sums.values())


def test_rewards_as_means_over_tokens():
    """Chosen 100 tokens at -1, rejected 10 at -3: by sums chosen is the worse, by means the better by 2, times beta."""
    policy = PairLogps(*torch.tensor([[-100.0], [-30.0], [100.0], [10.0]]))
    zero = PairLogps(torch.zeros(1), torch.zeros(1))
    sums = preference_sums(policy, zero, beta=2.0)
    means = preference_sums(policy, zero, beta=2.0, means=True)
    assert (sums["rewards/accuracies"].item(), means["rewards/accuracies"].item()) == (0, 1)
    assert means["rewards/margins"].item() == pytest.approx(4.0)
    assert means["logps/chosen"].item() == -100.0
