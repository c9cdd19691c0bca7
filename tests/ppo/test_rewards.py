"""Rewards and advantages: by hand, against loops, and where TRL's are wrong."""

import pytest
import torch
from torch import tensor

from ppo.rewards import compute_advantages, compute_rewards
from ppo.statistics import masked_whiten


def test_the_score_goes_to_the_last_token_that_counts():
    logprobs, reference = tensor([[0.5, 0.2, 0.1, 9.0], [0.5, 0.2, 0.1, 0.0]]), tensor([[0.4, 0.3, 0.0, 0.0]] * 2)
    mask = tensor([[0, 1, 1, 0], [1, 1, 0, 1]])
    rewards, penalty, kl = compute_rewards(tensor([1.0, -2.0]), logprobs, reference, mask, 0.5)
    assert kl[0].tolist() == pytest.approx([0.1, -0.1, 0.1, 9.0])
    assert penalty[0].tolist() == pytest.approx([-0.05, 0.05, -0.05, -4.5])
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.05, 0.95, -4.5])
    assert rewards[1].tolist() == pytest.approx([-0.05, 0.05, -0.05, -2.0])


def test_a_row_without_a_token_has_no_place_for_its_score():
    with pytest.raises(ValueError, match=r"responses \[1\] have no token"):
        compute_rewards(torch.ones(2), torch.zeros(2, 3), torch.zeros(2, 3), tensor([[1, 0, 0], [0, 0, 0]]), 0.2)


# Values, last reward, mask, and returns for gamma 1 and lambda 0.95
FIRST = ([0.1, 0.2, 0.3, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0])
SECOND = ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.0, 0.0, 0.0, 0.0, 0.0, 0.5], [1, 1, 1, 1, 1, 1])
BOTH = [torch.stack([tensor(FIRST[i]), tensor(SECOND[i])]) for i in range(3)]


def test_returns_and_advantages():
    """The first row by hand: 1.0; 0.3 + 0.95 * 0.7 = 0.965; 0.2 + 0.95 * 0.765 = 0.92675."""
    values, advantages, returns = compute_advantages(*BOTH)
    assert returns[0, :3].tolist() == pytest.approx([0.92675, 0.965, 1.0], rel=1e-5)
    assert returns[1].tolist() == pytest.approx([0.47506, 0.48954, 0.49951, 0.50475, 0.505, 0.5], abs=1e-5)
    assert advantages[0, :3].tolist() == pytest.approx([1.39275, 1.2117, 1.02112], abs=1e-5)
    assert advantages[1].tolist() == pytest.approx(
        [0.06839, -0.18236, -0.44632, -0.72416, -1.01663, -1.32449], abs=1e-5
    )
    assert values.tolist() == BOTH[0].tolist()
    assert (advantages[0, 3:] == 0).all()


def test_whitened_rewards_stay_inside_the_mask():
    """TRL's padding gets a reward too, and the first row's returns become 0.9624, 1.3233, 1.6979."""
    *_, returns = compute_advantages(*BOTH, whiten_rewards=True)
    assert returns[0, :3].tolist() == pytest.approx([1.70764, 2.10777, 2.52369], abs=1e-5)


def test_tokens_that_a_tool_wrote_are_stepped_over():
    """TRL takes them for states of value 0: its first returns are 0.82965 and 0.86279."""
    values, rewards = tensor([[0.1, 0.2, 7.0, 7.0, 0.5, 0.6]]), tensor([[0.0, 0.0, 9.0, 9.0, 0.0, 1.0]])
    mask = tensor([[1, 1, 0, 0, 1, 1]])
    *_, returns = compute_advantages(values, rewards, mask)
    assert returns[0].tolist() == pytest.approx([0.9182, 0.956, 0.0, 0.0, 0.98, 1.0], abs=1e-5)
    short = compute_advantages(*(x[:, [0, 1, 4, 5]] for x in (values, rewards, mask)))
    assert short.returns[0].tolist() == pytest.approx(returns[0, [0, 1, 4, 5]].tolist())


def plain(values, rewards, gamma, lam):
    """GAE as a sum over what follows: A_t = sum_k (gamma lam)^k delta_{t+k}."""
    n = len(values)
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) + values[t] for t in range(n)]


@pytest.mark.parametrize("seed", range(200))
def test_returns_equal_the_sums_of_the_paper(seed):
    generator = torch.Generator().manual_seed(seed)
    values, rewards = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 8, generator=generator) < 0.6
    mask[:, :2] = True
    gamma, lam = (float(x) for x in torch.rand(2, generator=generator))
    _, advantages, returns = compute_advantages(values, rewards, mask, gamma, lam)
    for row in range(3):
        at = mask[row]
        expected = plain(values[row][at].tolist(), rewards[row][at].tolist(), gamma, lam)
        assert returns[row][at].tolist() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(advantages, masked_whiten(returns - values, mask), rtol=1e-10, atol=1e-12)


def test_what_stands_outside_the_mask_changes_nothing():
    values, rewards = torch.randn(2, 3, 8)
    mask = torch.rand(3, 8) < 0.6
    mask[:, :2] = True
    noise = torch.randn(3, 8).where(~mask, 0.0)
    for whitened in (True, False):
        one = compute_advantages(values, rewards, mask, whiten_rewards=whitened)
        other = compute_advantages(values + noise, rewards - noise, mask, whiten_rewards=whitened)
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_a_single_token_has_no_advantage():
    """TRL divides by zero: every statistic and then every weight is not a number."""
    found = compute_advantages(tensor([[0.3, 0.0]]), tensor([[1.0, 0.0]]), tensor([[1, 0]]))
    assert found.advantages.tolist() == [[0.0, 0.0]]
    assert found.returns.tolist() == [[1.0, 0.0]]
