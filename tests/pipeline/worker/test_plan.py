import math
import random
import time

import numpy as np
import pytest

from dpo.lm.logprobs import Way
from pipeline.worker.objectives import SIDES
from pipeline.worker.plan import learning_rate, plan_step
from pipeline.worker.rehearsal import largest_micro_batch

CASES = 1000


def random_case(seed):
    """Few or many pairs, alike or not, on few or many ranks, under a tight or a wide budget, padded or not."""
    draw = random.Random(seed)
    longest = draw.choice([1, 10, 100, 1000])
    costs = [draw.randint(1, longest) for _ in range(draw.choice([1, 2, 5, 17, 64]))]
    return costs, draw.choice([1, 2, 3, 8, 13]), draw.randint(1, 4 * longest), draw.choice([0, 1, 2])


def computed(micro_batch, costs, padded_rows):
    """Tokens of a micro-batch, padding included."""
    mine = [costs[i] for i in micro_batch]
    return len(mine) * padded_rows * max(mine) if padded_rows else sum(mine)


@pytest.mark.parametrize("block", range(10))
def test_the_plan_of_any_step(block):
    for seed in range(block * CASES // 10, (block + 1) * CASES // 10):
        costs, world_size, budget, padded_rows = random_case(seed)
        plan = plan_step(costs, world_size, budget, padded_rows)
        assert plan == plan_step(list(costs), world_size, budget, padded_rows)
        assert len(plan) == world_size
        assert len({len(of_rank) for of_rank in plan}) == 1, "each micro-batch is a collective"
        assert sorted(i for of_rank in plan for batch in of_rank for i in batch) == list(range(len(costs)))
        for of_rank in plan:
            for batch in of_rank:
                assert len(batch) < 2 or computed(batch, costs, padded_rows) <= budget
            if [] in of_rank:  # only where even one pair a micro-batch does not fill them
                assert all(len(batch) < 2 for batch in of_rank)


def test_ranks_get_shares_of_one_size_in_every_step_of_many_data_sets():
    """Lengths as in real data, a long tail between 20 and 2,048 tokens; 8 pairs a rank or more.

    The balance of a step is the mean load over the largest: the time in which no rank waits. Pairs of which one is
    longer than a rank's whole share could not be balanced; no such step is drawn here.
    """
    balances = []
    for seed in range(1000):
        draw = random.Random(seed)
        world_size = draw.choice([2, 3, 4, 8])
        costs = [
            min(2048, max(20, int(draw.lognormvariate(5.5, 0.7)))) for _ in range(world_size * draw.randint(8, 32))
        ]
        loads = [sum(costs[i] for batch in of_rank for i in batch) for of_rank in plan_step(costs, world_size, 8192)]
        balances.append(sum(loads) / len(loads) / max(loads))
    assert min(balances) >= 0.98
    assert sum(balances) / len(balances) >= 0.99


def test_by_hand_padded():
    """Longest first 9, 7, 5, 4, 2: rank 0 gets 9, 4 (13) and rank 1 gets 7, 5, 2 (14).

    At 2 rows a pair and 20 tokens, 9 and 7 run alone (2 * 2 * 7 = 28), 5 and 2 fit together (2 * 2 * 5 = 20);
    rank 0 has 9, then 4. Both have two micro-batches.
    """
    assert plan_step([4, 9, 2, 7, 5], 2, 20, padded_rows=2) == [[[1], [0]], [[3], [4, 2]]]


def test_by_hand_unpadded():
    """9, 4 on rank 0 and 7, 5, 2 on rank 1, as above. At 9 tokens each needs two: 9 | 4 and 7 | 5 with 2, which goes
    to the emptier one.
    """
    assert plan_step([4, 9, 2, 7, 5], 2, 9) == [[[1], [0]], [[3], [4, 2]]]
    assert plan_step([4, 9, 2, 7, 5], 2, 14) == [[[1, 0]], [[3, 4, 2]]]


def test_unpadded_micro_batches_are_alike():
    """6 + 5 + 4 + 3 = 18 at 17 tokens: not 17 and 1 but 6 + 3 and 5 + 4."""
    assert plan_step([6, 5, 4, 3], 1, 17) == [[[0, 3], [1, 2]]]


def test_one_more_unpadded_micro_batch_where_the_least_number_does_not_hold_them():
    """6 + 6 + 6 = 18 at 9 tokens: two would do by their sum, but no two pairs fit together."""
    assert plan_step([6, 6, 6], 1, 9) == [[[0], [1], [2]]]


def test_micro_batches_are_halved_until_all_ranks_have_as_many():
    """At 6 tokens, rank 0 with 6 and 1 needs two micro-batches, rank 1 with 3 and 3 but one."""
    for padded_rows in (0, 1):
        assert plan_step([6, 3, 3, 1], 2, 6, padded_rows) == [[[0], [3]], [[1], [2]]]
        assert plan_step([6, 3, 3], 2, 6, padded_rows) == [[[0]], [[1, 2]]]


def test_an_empty_micro_batch_where_a_rank_has_too_few_pairs():
    """8 | 2 2 2 2: at 8 tokens, 2 rows a pair, rank 1 needs two micro-batches, and rank 0 has one pair."""
    assert plan_step([8, 2, 2, 2, 2], 2, 8, 2) == [[[0], []], [[1, 2], [3, 4]]]
    assert plan_step([8, 2, 2, 2, 2], 2, 16, 2) == [[[0]], [[1, 2, 3, 4]]]


@pytest.mark.parametrize("padded_rows", [0, 1, 2])
def test_a_pair_above_the_budget_runs_alone(padded_rows):
    assert plan_step([50, 3, 3], 1, 12, padded_rows) == [[[0], [1, 2]]]


def test_fewer_pairs_than_ranks():
    assert plan_step([3, 5], 4, 100) == [[[1]], [[0]], [[]], [[]]]


def test_equal_lengths_are_taken_by_their_place_in_the_step():
    assert plan_step([4, 4, 4, 4], 2, 8, 2) == [[[0], [2]], [[1], [3]]]


# The largest micro-batch


def lengths(*pairs):
    return np.array(pairs)


def test_the_largest_micro_batch_of_a_run():
    """Shared: 3 + 2 + 1 = 6, 5 + 1 + 1 = 7 and 2 + 9 + 1 = 12 tokens. At 14, the first step runs at once with 13."""
    steps = [lengths((3, 2, 1), (5, 1, 1)), lengths((2, 9, 1))]
    shared = largest_micro_batch(steps, SIDES, Way(), False, 1, 14)
    assert sorted(shared.tolist()) == [[3, 2, 1], [5, 1, 1]]
    assert largest_micro_batch(steps, SIDES, Way(), False, 1, 12).tolist() == [[2, 9, 1]]
    assert largest_micro_batch(steps, SIDES, Way(), False, 2, 14).tolist() == [[2, 9, 1]]  # two ranks share step 1


def test_the_largest_padded_micro_batch():
    """Unshared, the pair of 11 in two rows has 22, the two others 2 * 2 * 6 = 24 at once, or 12 each."""
    steps = [lengths((3, 2, 1), (5, 1, 1)), lengths((2, 9, 1))]
    padded = Way(shared=False)
    assert sorted(largest_micro_batch(steps, SIDES, padded, False, 1, 24).tolist()) == [[3, 2, 1], [5, 1, 1]]
    assert largest_micro_batch(steps, SIDES, padded, False, 1, 20).tolist() == [[2, 9, 1]]


def test_one_side_only():
    steps = [lengths((3, 2, 9), (3, 4, 1))]
    assert largest_micro_batch(steps, ("chosen",), Way(), False, 1, 7).tolist() == [[3, 4, 1]]


def test_no_steps():
    assert len(largest_micro_batch([], SIDES, Way(), False, 1, 7)) == 0


@pytest.mark.long
def test_a_million_pairs_are_planned_within_a_minute():
    """The budget of time is the requirement; on this machine's one core it took 3 s."""
    draw = np.random.default_rng(0)
    sizes = np.minimum(2048, draw.lognormal(5.0, 0.8, (1_000_000, 3)).astype(np.int64) + 1)
    began = time.process_time()
    largest_micro_batch(np.split(sizes, range(64, len(sizes), 64)), SIDES, Way(), False, 8, 8192)
    assert time.process_time() - began < 60


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
    with pytest.raises(ValueError, match="unknown schedule 'step'; use constant, linear or cosine"):
        learning_rate(3, 6, 1.0, 2, "step")
