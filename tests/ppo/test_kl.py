"""Controllers of the KL coefficient, and the estimators."""

import math

import pytest
import torch
from torch import tensor

from ppo import AdaptiveKLController, FixedKLController
from ppo.kl import kl_penalty


def test_the_adaptive_controller():
    """By hand: 0.2 (1 + 0.2 * 256/10000); then 0.05 of error; then -0.2, twice."""
    controller = AdaptiveKLController(0.2, 6, 10000)
    for current, expected in (
        (12, 0.201024),
        (6.3, 0.20128131072),
        (0, 0.20025075040911358),
        (-5, 0.19922546656701892),
    ):
        controller.update(current, 256)
        assert controller.value == pytest.approx(expected, rel=1e-12)
    assert type(controller.value) is float
    controller.update(torch.tensor(12.0), 256)
    assert type(controller.value) is float


def test_the_coefficient_never_turns_negative():
    """1000 samples and a horizon of 100: TRL's multiplier is 1 - 0.2 * 10 = -1."""
    controller = AdaptiveKLController(0.2, 6, 100)
    controller.update(0, 1000)
    assert controller.value == 0.0


def test_the_fixed_controller():
    controller = FixedKLController(0.3)
    controller.update(100, 256)
    assert controller.value == 0.3


@pytest.mark.parametrize("wrong", [{"target": 0}, {"target": -1}, {"horizon": 0}, {"target": math.nan}])
def test_wrong_numbers_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} = {value} .* must be above 0"):
        AdaptiveKLController(0.2, **{"target": 6, "horizon": 100} | wrong)


def test_controllers_are_kept():
    old, new = AdaptiveKLController(0.2, 6, 100), AdaptiveKLController(0.5, 6, 100)
    old.update(12, 10)
    new.load_state_dict(old.state_dict())
    assert new.value == old.value != 0.5


POLICY, REFERENCE = tensor([[0.5, 0.2, 0.1]]), tensor([[0.4, 0.3, 0.0]])


@pytest.mark.parametrize(
    ("kind", "expected"), [("kl", [0.1, -0.1, 0.1]), ("abs", [0.1, 0.1, 0.1]), ("mse", [0.005, 0.005, 0.005])]
)
def test_estimators(kind, expected):
    assert kl_penalty(POLICY, REFERENCE, kind)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_whole_kl():
    """0.97 (log 0.98 - log 0.01) = 4.4474."""
    p, q = (tensor([[[*x]]]).log() for x in ((0.98, 0.01, 0.01), (0.01, 0.01, 0.98)))
    assert kl_penalty(p, q, "full").item() == pytest.approx(4.4474, abs=1e-4)
    assert kl_penalty(p, q, "full").shape == (1, 1)


def test_a_token_that_cannot_come_adds_nothing_to_the_whole_kl():
    p, q = tensor([[[0.5, 0.5, 0.0]]]).log(), tensor([[[0.25, 0.5, 0.25]]]).log()
    assert kl_penalty(p, q, "full").item() == pytest.approx(0.5 * math.log(2), rel=1e-6)


def test_wrong_kinds_and_shapes_are_refused():
    with pytest.raises(ValueError, match="kl_penalty = 'k3' must be one of kl, abs, mse, full"):
        kl_penalty(POLICY, REFERENCE, "k3")
    with pytest.raises(ValueError, match=r"'full' compares log-probs of 2 or 3 dimensions .* \(3,\) with \(3,\)"):
        kl_penalty(POLICY[0], REFERENCE[0], "full")
    with pytest.raises(ValueError, match=r"\(1, 3\) with \(1, 2\)"):
        kl_penalty(POLICY, REFERENCE[:, :2])
