"""Each rule finds the fault that is planted for it, and none finds anything in a healthy run."""

import numpy as np
import pytest

from pipeline.report.diagnoses import RULES, diagnose
from pipeline.report.evidence import Curve, Evidence, HeldOut

STEPS = 200


def curve(values):
    return Curve(np.arange(1, len(values) + 1), np.array(values))


def healthy(seed=0):
    """A run as it should be: the loss falls from ln 2 and flattens, rewards part, answers keep their length."""
    draw = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    loss = 0.35 + 0.343 * np.exp(-steps / 60)
    loss[1:] += draw.normal(0, 0.03, STEPS - 1)
    loss[0] = np.log(2)
    held_out = Curve(np.array([50, 100, 150, 200]), np.array([0.52, 0.44, 0.41, 0.405]))
    pairs = 300
    chosen, rejected = draw.normal(0.5, 1.5, pairs), draw.normal(-3.0, 1.5, pairs)
    lengths = draw.integers(20, 200, (2, pairs))
    return Evidence(
        {"loss": curve(loss), "eval/loss": held_out, "grad_norm": curve(draw.gamma(4, 0.4, STEPS))},
        HeldOut(np.arange(pairs), draw.normal(-120, 20, pairs), chosen, rejected, *lengths),
        [{"before": "b" * n, "after": "a" * (n + 10), "chosen": "c" * n} for n in draw.integers(80, 200, 20)],
        1.0,
    )


def curves(evidence, **values):
    names = {"held_out_loss": "eval/loss", "norm": "grad_norm"}
    changed = {
        names.get(name, name): value if isinstance(value, Curve) else curve(value) for name, value in values.items()
    }
    return evidence._replace(curves={**evidence.curves, **changed})


def pairs(evidence, **values):
    return evidence._replace(held_out=evidence.held_out._replace(**values))


def nothing_learned(evidence):
    return curves(evidence, loss=np.log(2) + np.r_[0, np.random.default_rng(1).normal(0, 0.01, STEPS - 1)])


def over_optimised(evidence):
    return curves(
        evidence,
        loss=np.linspace(np.log(2), 0.1, STEPS),
        held_out_loss=Curve(np.array([50, 100, 150, 200]), np.array([0.5, 0.46, 0.55, 0.7])),
    )


def chosen_falls(evidence):
    held_out = evidence.held_out
    return pairs(evidence, chosen_moved=held_out.chosen_moved - 30, rejected_moved=held_out.rejected_moved - 30)


def margins_follow_length(evidence):
    held_out = evidence.held_out
    longer = held_out.chosen_tokens - held_out.rejected_tokens
    return pairs(evidence, chosen_moved=held_out.rejected_moved + 3 + 0.05 * longer + held_out.chosen_moved)


def answers_grow(evidence):
    return evidence._replace(answers=[{**row, "after": row["after"] * 3} for row in evidence.answers])


def labels_are_noisy(evidence):
    """A quarter of the labels are the wrong way round, and the policy has learned the right one."""
    chosen, rejected = evidence.held_out.chosen_moved.copy(), evidence.held_out.rejected_moved.copy()
    chosen[::4], rejected[::4] = evidence.held_out.rejected_moved[::4], evidence.held_out.chosen_moved[::4]
    return pairs(evidence, chosen_moved=chosen, rejected_moved=rejected)


def saturated(evidence):
    return curves(evidence, loss=np.r_[np.log(2) * np.exp(-np.arange(40) / 8), np.full(STEPS - 40, 0.004)])


def clipped(evidence):
    return curves(evidence, norm=evidence.curves["grad_norm"].values * 20)


PLANTED = {
    "nothing-learned": [nothing_learned],
    "over-optimised": [over_optimised],
    "chosen-falls": [chosen_falls],
    "length-exploited": [margins_follow_length, answers_grow],
    "labels-are-noisy": [labels_are_noisy],
    "saturated": [saturated],
    "clipped": [clipped],
}
CASES = [(name, plant, seed) for name, plants in PLANTED.items() for plant in plants for seed in range(5)]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_found_in_a_healthy_run(seed):
    assert diagnose(healthy(seed)) == []


@pytest.mark.parametrize(("name", "plant", "seed"), CASES)
def test_a_planted_fault_is_found_and_no_other(name, plant, seed):
    (found,) = diagnose(plant(healthy(seed)))
    assert found.name == name
    assert any(digit in found.evidence for digit in "0123456789") and found.cure.endswith(".")


def test_every_rule_has_its_planted_fault():
    assert len(RULES) == len(PLANTED)


@pytest.mark.parametrize("change", [{"held_out": None}, {"answers": []}, {"curves": {}}, {"max_grad_norm": 0.0}])
def test_a_run_without_some_evidence_is_judged_by_the_rest(change):
    assert diagnose(healthy()._replace(**change)) == []


def test_few_pairs_steps_and_answers_say_nothing():
    evidence = healthy()
    few = evidence._replace(
        curves={name: Curve(*(values[:2] for values in one)) for name, one in evidence.curves.items()},
        held_out=HeldOut(*(values[:10] - 20 for values in evidence.held_out)),
        answers=[{"before": "a", "after": "a" * 50, "chosen": "a"}] * 3,
    )
    assert diagnose(few) == []
