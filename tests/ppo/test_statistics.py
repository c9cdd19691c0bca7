"""Means and variances over masked entries; running moments; on one rank and as if on two."""

import math

import pytest
import torch
from torch import tensor

from ppo import get_global_statistics
from ppo.statistics import (
    RunningMoments,
    masked_mean,
    masked_moments,
    masked_var,
    masked_whiten,
    whiten,
)


def loops(values, mask):
    """Mean, population variance, count, in plain Python."""
    chosen = [v for v, m in zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True) if m]
    mean = math.fsum(chosen) / len(chosen)
    return mean, math.fsum((x - mean) ** 2 for x in chosen) / len(chosen), len(chosen)


@pytest.mark.parametrize("seed", range(200))
def test_means_and_variances_equal_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 7, generator=generator) < 0.5
    mask[0, :2] = True
    mean, variance, count = loops(values, mask)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(masked_mean(values, mask).item(), mean, **close)
    torch.testing.assert_close(masked_var(values, mask).item(), variance * count / (count - 1), **close)
    torch.testing.assert_close(masked_var(values, mask, unbiased=False).item(), variance, **close)
    for shift in (True, False):
        whitened = masked_whiten(values, mask, shift)
        expected = (values - mean) / math.sqrt(variance * count / (count - 1) + 1e-8) + (0.0 if shift else mean)
        torch.testing.assert_close(whitened[mask], expected[mask], **close)
        assert (whitened[~mask] == 0).all()
    found = get_global_statistics(None, values, mask)
    torch.testing.assert_close([float(x) for x in found], [mean, variance, float(count)], **close)


def test_rows_of_a_mean_along_an_axis_may_be_empty():
    assert masked_mean(tensor([[1.0, 3.0], [5.0, 7.0]]), tensor([[1, 1], [0, 0]]), axis=1).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten, masked_moments])
def test_an_empty_mask_is_refused(function):
    with pytest.raises(ValueError, match=r"\(2, 3\) leaves no entry"):
        function(torch.ones(2, 3), torch.zeros(2, 3))


def test_what_the_mask_leaves_out_does_not_count():
    """TRL's sum takes 100 in while its count does not: 106 / 3 = 35.33."""
    mean, variance, count = get_global_statistics(None, tensor([1.0, 2.0, 3.0, 100.0]), tensor([1, 1, 1, 0]))
    assert (mean.item(), round(variance.item(), 6), count) == (2.0, 0.666667, 3)


def test_statistics_without_a_mask_and_of_other_types():
    assert [float(x) for x in get_global_statistics(None, tensor([1.0, 2.0, 3.0, 100.0]))] == [26.5, 1801.25, 4]
    mean, variance, count = get_global_statistics(None, tensor([1, 2]), device="cpu")
    assert (mean.dtype, float(mean), float(variance), count) == (torch.float32, 1.5, 0.25, 2)


def test_counts_stay_exact_where_float32_does_not():
    """2^24 + 1 is no float32."""
    *_, count = get_global_statistics(None, torch.zeros(2**24 + 1))
    assert count == 2**24 + 1


def test_one_entry_has_no_spread():
    assert masked_var(tensor([3.0, 9.0]), tensor([1, 0])) == 0
    assert masked_whiten(tensor([3.0, 9.0]), tensor([1, 0])).tolist() == [0.0, 0.0]


def test_whiten_takes_all():
    assert whiten(tensor([1.0, 3.0])).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_two_ranks_give_what_one_gives():
    """The other rank's sums are added as an all-reduce would."""
    mine, other = torch.randn(2, 4), torch.randn(2, 4)
    mask = tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
    mean, _, _ = masked_moments(torch.cat([mine, other]), torch.cat([mask, mask]))
    sent = iter(
        [
            torch.stack([other[mask.bool()].double().sum(), mask.sum().double()]),
            (other[mask.bool()].double() - mean).square().sum(),
        ]
    )
    assert masked_moments(mine, mask, lambda total: total + next(sent))[1] == pytest.approx(
        float(masked_moments(torch.cat([mine, other]), torch.cat([mask, mask]))[1]), rel=1e-12
    )


def test_running_moments():
    moments = RunningMoments()
    assert moments.update(tensor([1.0, 2.0, 3.0])) == pytest.approx((2.0, 1.0))
    assert moments.update(tensor([10.0, 20.0])) == pytest.approx((15.0, 7.0710678))
    assert moments.update(tensor([5.0])) == (5.0, 0.0)
    assert (moments.mean, moments.std, moments.var, moments.count) == pytest.approx((6.83333, 7.19490, 43.13889, 6))
    other = RunningMoments()
    other.load_state_dict(moments.state_dict())
    assert vars(other) == vars(moments)


def test_a_first_batch_of_one_score_scales_nothing():
    """TRL's deviation is infinite then, and every score 0."""
    moments = RunningMoments()
    assert moments.update(tensor([4.0])) == (4.0, 0.0)
    assert (moments.mean, moments.std) == (4.0, 1.0)
    moments.update(tensor([6.0]))
    assert moments.std == pytest.approx(2**0.5)
