"""The clipped losses against loops, and the statistics of a mini-batch."""

import math

import pytest
import torch
from torch import tensor

from ppo.losses import (
    NUMBERS,
    clip_by_value,
    entropy_from_logits,
    logprobs_from_logits,
    loss_sums,
    means,
    statistics,
)


def draw(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape, vocabulary = (3, 6), 5
    old, values, vpreds, advantages, returns = (
        0.5 * torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(5)
    )
    logits = torch.randn(*shape, vocabulary, generator=generator, dtype=dtype)
    new = old + 0.3 * torch.randn(*shape, generator=generator, dtype=dtype)
    mask = (torch.rand(*shape, generator=generator) < 0.6).long()
    mask[:, 0] = 1
    return old, values, logits, vpreds, new, mask, advantages, returns


def loops(old, values, logits, vpreds, new, mask, advantages, returns, cliprange=0.2, cliprange_value=0.2):
    """Equation 7 of the paper, its value loss as in Schulman's code, and the statistics, token by token."""
    found = {name: [] for name in NUMBERS}
    for i, j in mask.nonzero().tolist():
        ratio = math.exp(new[i, j] - old[i, j])
        gain = float(advantages[i, j])
        clipped = min(max(ratio, 1 - cliprange), 1 + cliprange)
        before, now, wanted = float(values[i, j]), float(vpreds[i, j]), float(returns[i, j])
        near = min(max(now, before - cliprange_value), before + cliprange_value)
        p = logits[i, j].softmax(-1).tolist()
        entry = {
            "tokens": 1.0,
            "policy": max(-gain * ratio, -gain * clipped),
            "value": 0.5 * max((now - wanted) ** 2, (near - wanted) ** 2),
            "entropy": -sum(x * math.log(x) for x in p),
            "approxkl": 0.5 * float(new[i, j] - old[i, j]) ** 2,
            "policykl": float(old[i, j] - new[i, j]),
            "policy_clipped": float(-gain * clipped > -gain * ratio),
            "value_clipped": float((near - wanted) ** 2 > (now - wanted) ** 2),
            "advantages": gain,
            "ratio": ratio,
            "error": (now - wanted) ** 2,
            "vpred": now,
            "returns": wanted,
            "returns_squared": wanted**2,
            "values": before,
            "values_squared": before**2,
        }
        for name in NUMBERS:
            found[name].append(entry[name])
    return found


@pytest.mark.parametrize("seed", range(200))
def test_sums_equal_loops(seed):
    batch = draw(seed)
    sums, expected = loss_sums(*batch), loops(*batch)
    assert sums.numbers.tolist() == pytest.approx([math.fsum(expected[name]) for name in NUMBERS], rel=1e-10)
    assert float(sums.policy) == pytest.approx(math.fsum(expected["policy"]), rel=1e-10)
    assert float(sums.value) == pytest.approx(math.fsum(expected["value"]), rel=1e-10)
    assert sums.ratio[batch[5].bool()].tolist() == pytest.approx(expected["ratio"], rel=1e-10)


def test_variances_are_divided_by_the_count_less_one():
    batch = draw(3)
    found = statistics(loss_sums(*batch).numbers, 0.5)
    mask = batch[5].bool()
    assert found["returns/var"] == pytest.approx(float(batch[7][mask].var()), rel=1e-10)
    assert found["val/var"] == pytest.approx(float(batch[1][mask].var()), rel=1e-10)
    assert found["loss/total"] == pytest.approx(found["loss/policy"] + 0.5 * found["loss/value"])


def test_one_token_has_finite_statistics():
    batch = [x[:1, :1] for x in draw(0)]
    assert all(math.isfinite(x) for x in statistics(loss_sums(*batch).numbers, 0.1).values())


def test_gradients():
    old, values, logits, vpreds, new, mask, advantages, returns = draw(5)

    def both(vpreds, new):
        sums = loss_sums(old, values, logits, vpreds, new, mask, advantages, returns)
        return sums.policy, sums.value

    assert torch.autograd.gradcheck(both, (vpreds.requires_grad_(), new.requires_grad_()))


def test_what_stands_outside_the_mask_changes_nothing_be_it_infinite():
    batch = draw(7)
    outside = ~batch[5].bool()
    other = [x.clone() for x in batch]
    for i in (0, 1, 3, 4, 6, 7):
        other[i][outside] = math.inf
    other[2][outside] = math.nan
    new = [other[3].requires_grad_(), other[4].requires_grad_()]
    sums = loss_sums(*other)
    assert sums.numbers.tolist() == loss_sums(*batch).numbers.tolist()
    (sums.policy + sums.value).backward()
    assert all(x.grad.isfinite().all() for x in new)


def test_sums_of_parts_are_the_sum_of_the_whole():
    """So no way of cutting a batch changes a loss."""
    batch = draw(9)
    parts = [loss_sums(*(x[i : i + 1] for x in batch)).numbers for i in range(3)]
    assert torch.stack(parts).sum(0).tolist() == pytest.approx(loss_sums(*batch).numbers.tolist(), rel=1e-12)
    assert means(parts[0])["tokens"] == 1.0


def test_logprobs_and_entropy():
    logits = torch.randn(2, 3, 7)
    labels = torch.randint(7, (2, 3))
    logps = logits.log_softmax(-1)
    torch.testing.assert_close(logprobs_from_logits(logits, labels), logps.gather(-1, labels[..., None])[..., 0])
    torch.testing.assert_close(logprobs_from_logits(logits, None, gather=False), logps)
    torch.testing.assert_close(entropy_from_logits(logits), torch.distributions.Categorical(logits=logits).entropy())
    assert entropy_from_logits(tensor([0.0, -math.inf])) == 0
    assert logprobs_from_logits(logits.bfloat16(), labels).dtype == torch.float32
    with pytest.raises(ValueError, match="labels = None"):
        logprobs_from_logits(logits, None)


def test_bounds_may_be_tensors():
    assert clip_by_value(tensor([1.0, 5.0, 3.0]), tensor([2.0, 2.0, 2.0]), 4.0).tolist() == [2.0, 4.0, 3.0]
