"""The toy of examples/ learns what it is paid for, and a policy that is not trained does not."""

import runpy
from pathlib import Path

import pytest

TOY = Path(__file__).parents[2] / "examples" / "ppo_toy.py"


@pytest.fixture(scope="module")
def toy():
    return runpy.run_path(str(TOY))


def mean(rows, name):
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.slow
def test_fifty_steps_bring_nine_tenths_of_the_greatest_reward(toy, tmp_path):
    """By chance 4 of 25 words are fruit, one ends: 0.16 (1 + 0.96 + ... + 0.96^7) / 8 = 0.14. Naming fruit for sure
    costs at least 8 ln(25/4) = 14.7 nats.
    """
    _, rows = toy["run"](3e-3, 50)
    assert rows[0]["reward"] == pytest.approx(0.14, abs=0.05)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert mean(rows[-5:], "reward") > 0.9
    assert 5 < max(row["kl"] for row in rows) < 20
    toy["draw"](rows, rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_without_a_value_head_it_learns_as_much_in_fewer_steps(toy, estimator):
    """From the same start; the policy is the plain model."""
    trainer, rows = toy["run"](3e-3, 25, estimator)
    assert not any("v_head" in name for name in trainer.model.state_dict())
    assert rows[0]["reward"] == pytest.approx(0.14, abs=0.05)
    assert mean(rows[-5:], "reward") > 0.9
    assert 5 < max(row["kl"] for row in rows) < 20


@pytest.mark.slow
def test_a_fixed_policy_stays_where_it_is(toy):
    _, rows = toy["run"](0.0, 10)
    assert all(abs(row["reward"] - 0.14) < 0.07 for row in rows)
    assert all(row["kl"] == pytest.approx(0, abs=1e-4) for row in rows)
