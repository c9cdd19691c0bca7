import math
import random

import pytest

from pipeline.worker.plan import learning_rate, plan_step

CASES = 300


def random_case(seed):
    """Few or many pairs, alike or not, on few or many ranks, under a tight or a wide budget."""
    draw = random.Random(seed)
    longest = draw.choice([1, 10, 100, 1000])
    widths = [draw.randint(1, longest) for _ in range(draw.choice([1, 2, 5, 17, 64]))]
    return widths, draw.choice([1, 2]), draw.choice([1, 2, 3, 8, 13]), draw.randint(1, 4 * longest)


def padded(micro_batch, widths, sequences):
    return len(micro_batch) * sequences * max(widths[i] for i in micro_batch)


@pytest.mark.parametrize("block", range(10))
def test_the_plan_of_any_step(block):
    for seed in range(block * CASES // 10, (block + 1) * CASES // 10):
        widths, sequences, world_size, budget = random_case(seed)
        plan = plan_step(widths, sequences, world_size, budget)
        assert plan == plan_step(list(widths), sequences, world_size, budget)
        assert len(plan) == world_size
        assert len({len(of_rank) for of_rank in plan}) == 1, "each micro-batch is a collective"
        assert sorted(i for of_rank in plan for batch in of_rank for i in batch) == list(range(len(widths)))
        for of_rank in plan:
            for batch in of_rank:
                assert len(batch) < 2 or padded(batch, widths, sequences) <= budget
            if [] in of_rank:  # only where even one pair a micro-batch does not fill them
                assert all(len(batch) < 2 for batch in of_rank)


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("seed", range(10))
def test_ranks_get_shares_of_one_size(world_size, seed):
    """Lengths as in real data, a long tail between 20 and 1,024 tokens; 8 pairs a rank or more."""
    draw = random.Random(seed)
    widths = [min(1024, max(20, int(draw.lognormvariate(5.5, 0.7)))) for _ in range(world_size * draw.randint(8, 32))]
    plan = plan_step(widths, 2, world_size, 8192)
    loads = [sum(widths[i] for batch in of_rank for i in batch) for of_rank in plan]
    assert sum(loads) / len(loads) / max(loads) >= 0.98


def test_by_hand():
    """Longest first 9, 7, 5, 4, 2: rank 0 gets 9, 4 (13) and rank 1 gets 7, 5, 2 (14).

    At 2 sequences a pair and 20 tokens, 9 and 7 run alone (2 * 2 * 7 = 28), 5 and 2 fit together (2 * 2 * 5 = 20);
    rank 0 has 9, then 4. Both have two micro-batches.
    """
    assert plan_step([4, 9, 2, 7, 5], 2, 2, 20) == [[[1], [0]], [[3], [4, 2]]]


def test_micro_batches_are_halved_until_all_ranks_have_as_many():
    """At 6 tokens, rank 0 with 6 and 1 needs two micro-batches, rank 1 with 3 and 3 but one."""
    assert plan_step([6, 3, 3, 1], 1, 2, 6) == [[[0], [3]], [[1], [2]]]
    assert plan_step([6, 3, 3], 1, 2, 6) == [[[0]], [[1, 2]]]


def test_an_empty_micro_batch_where_a_rank_has_too_few_pairs():
    """8 | 2 2 2 2: at 8 tokens rank 1 needs two micro-batches, and rank 0 has one pair."""
    assert plan_step([8, 2, 2, 2, 2], 2, 2, 8) == [[[0], []], [[1, 2], [3, 4]]]
    assert plan_step([8, 2, 2, 2, 2], 2, 2, 16) == [[[0]], [[1, 2, 3, 4]]]


def test_a_pair_above_the_budget_runs_alone():
    assert plan_step([50, 3, 3], 2, 1, 12) == [[[0], [1, 2]]]


def test_fewer_pairs_than_ranks():
    assert plan_step([3, 5], 2, 4, 100) == [[[1]], [[0]], [[]], [[]]]


def test_equal_lengths_are_taken_by_their_place_in_the_step():
    assert plan_step([4, 4, 4, 4], 2, 2, 8) == [[[0], [2]], [[1], [3]]]


# The learning rate


def rates(schedule, steps=6, warmup=2, peak=1.0):
    return [learning_rate(step, steps, peak, warmup, schedule) for step in range(steps)]


def test_constant():
    assert rates("constant") == [0.5, 1, 1, 1, 1, 1]


def test_linear():
    """After two steps of warm-up four steps are left: 4/4, 3/4, 2/4, 1/4, and 0 would be the next."""
    assert rates("linear") == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates("linear", steps=4, warmup=0) == [1, 0.75, 0.5, 0.25]


def test_cosine():
    """(1 + cos(pi * k/4)) / 2 for k = 0..3: 1, (1 + 1/sqrt 2)/2, 1/2, (1 - 1/sqrt 2)/2."""
    half = math.sqrt(0.5) / 2
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.5 + half, 0.5, 0.5 - half])


def test_the_peak_scales_all():
    assert rates("cosine", peak=3e-4) == pytest.approx([3e-4 * rate for rate in rates("cosine")])


def test_a_run_that_is_all_warm_up():
    assert rates("linear", steps=2, warmup=2) == [0.5, 1]
    assert rates("linear", steps=1, warmup=0) == [1]


def test_no_other_schedule():
    with pytest.raises(ValueError, match="no schedule 'step'; there are constant, linear and cosine"):
        learning_rate(3, 6, 1.0, 2, "step")
