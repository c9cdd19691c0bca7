"""Two gloo ranks give what one process gives on all samples; DeepSpeed at every stage gives what plain torch gives."""

import numpy as np
import pytest
import torch

from ppo import AutoModelForCausalLMWithValueHead
from tests.ppo import rank_program, tiny

pytestmark = pytest.mark.group
PLAIN = ["plain", "shaped", "grouped", "early", "guarded", "gathering", "tracked", "overridden"]
STAGES = range(4)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return rank_program.launch(PLAIN, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    for seed in (0, 1):
        tiny.causal(seed).save_pretrained(folder / f"start-{seed}")
    return rank_program.launch([*(f"sharded{stage}" for stage in STAGES), "loaded3"], folder)


@pytest.fixture(scope="module")
def alone():
    """One process with all samples, in this process."""
    found = {}

    def run(name):
        if name not in found:
            found[name] = rank_program.TRIALS[name](0, 1)
        return found[name]

    return run


# Over two ranks the samples come in another order: those of rank 0, then those of rank 1.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
BY_SAMPLE = {"objective/kl_dist", "tokens/queries_dist", "tokens/responses_dist"}
MATRICES = {"objective/logprobs", "objective/ref_logprobs"}  # which hold anything behind a sample's own tokens
BY_TOKEN = {"ppo/policy/advantages", "ppo/policy/ratio"}


def agree(found, expected, tolerance=1e-5):
    """Statistics of every step, weights, coefficient and moments."""
    for mine, theirs in zip(found["stats"], expected["stats"], strict=True):
        assert {*mine} == {*theirs}
        for key, value in theirs.items():
            if key.startswith("time/"):
                continue
            if key in BY_SAMPLE:
                value = value[ORDER]
            got = mine[key]
            if key in MATRICES:
                lengths = theirs["tokens/queries_dist"] + theirs["tokens/responses_dist"] - 1
                own = np.arange(value.shape[1]) < lengths[:, None]
                value, got = (value * own)[ORDER], got * own[ORDER]
            if key in BY_TOKEN:
                value, got = np.sort(value), np.sort(got)
            np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance, err_msg=key)
    for name, weight in expected["weights"].items():
        assert (found["weights"][name] - weight).abs().max() <= tolerance, name
    assert found["kl_coef"] == pytest.approx(expected["kl_coef"], rel=tolerance)
    assert found["running"] == pytest.approx(expected["running"], rel=tolerance)


def changed(found):
    """The weights have really moved, so that equality says something."""
    start = tiny.causal(0).state_dict()
    return max(float((found["weights"][name] - start[name]).abs().max()) for name in start)


@pytest.mark.parametrize("name", ["plain", "shaped", "grouped", "early", "guarded"])
def test_two_ranks_are_one(two_ranks, alone, name):
    """Ranks with different lengths, several updates and micro-batches, whitening and scaling over all ranks."""
    expected = alone(name)
    assert changed(expected) > 1e-2
    for found in two_ranks[name]:
        agree(found, expected)
    assert all(
        (two_ranks[name][0]["weights"][k] == two_ranks[name][1]["weights"][k]).all() for k in expected["weights"]
    )


def test_the_methods_of_a_subclass_on_two_ranks(two_ranks, alone):
    """Variances are of a mini-batch of one rank; whatever else is a mean is that of one process."""
    expected = alone("overridden")
    assert changed(expected) > 1e-2
    for found in two_ranks["overridden"]:
        for mine, theirs in zip(found["stats"], expected["stats"], strict=True):
            for name in ("objective/kl", "ppo/loss/policy", "ppo/loss/value", "ppo/policy/policykl", "ppo/val/error"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
            for name in BY_TOKEN:
                np.testing.assert_allclose(np.sort(mine[name]), np.sort(theirs[name]), rtol=1e-4, atol=1e-5)
        for name, weight in expected["weights"].items():
            assert (found["weights"][name] - weight).abs().max() <= 1e-5, name


def test_all_ranks_stop_early_at_the_same_point(two_ranks, alone):
    """After two of four epochs of two updates."""
    assert [found["updates"] for found in two_ranks["early"]] == [alone("early")["updates"]] * 2
    assert 0 < alone("early")["updates"] < 8


def test_all_ranks_leave_out_the_same_mini_batches(two_ranks, alone):
    """A ratio above the threshold on one rank: the decision is made over both, and nobody waits for nobody."""
    expected = alone("guarded")["sound"]
    assert True in expected
    assert False in expected
    assert [found["sound"] for found in two_ranks["guarded"]] == [expected] * 2


def test_statistics_are_gathered(two_ranks):
    """By hand: of 0 ... 15 those that 3 does not divide have mean 7.5; entries of ranks stand one behind the other."""
    for rank, found in enumerate(two_ranks["gathering"]):
        kept = [x for x in range(16) if x % 3]
        assert found["statistics"] == pytest.approx((np.mean(kept), np.var(kept), len(kept)))
        assert found["gathered"]["number"] == 0.5
        assert found["gathered"]["row"].tolist() == [0.0, 1.0, 1.0, 2.0]
        assert found["gathered"]["matrix"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
        assert (found["distributed"], found["main"]) == (True, rank == 0)
        assert found["sizes"] == (2, 8, 4)


def test_ranks_draw_different_samples(two_ranks):
    """With one stream of random numbers for all, several samples of a prompt would be copies."""
    first, second = (found["drawn"] for found in two_ranks["gathering"])
    assert first[:2] == second[:2] == [3, 4]
    assert first != second


def test_rewards_of_all_ranks_are_logged_by_the_first(two_ranks):
    first, second = (found["seen"] for found in two_ranks["tracked"])
    assert second == []
    (logged,) = first
    assert sorted(logged["env/reward_dist"].tolist()) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert logged["env/reward_mean"] == 3.5
    assert "| q1 | r1 | 7.0 |" in logged["game_log"]


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_is_plain_torch(sharded, alone, stage):
    """Two steps over two ranks, with clipped gradients: statistics and weights."""
    expected = alone("alone")["first"]
    assert changed(expected) > 1e-2
    for found in sharded[f"sharded{stage}"]:
        assert found["stage"] == stage
        if found["first"]["weights"]:  # at stage 3 the first rank alone has whole weights
            agree(found["first"], expected)
        else:
            agree(found["first"] | {"weights": expected["weights"]}, expected)


def test_models_that_are_loaded_in_parts(sharded, alone):
    """Under ZeRO-3 from_pretrained partitions as it loads; the reference then has an engine of its own."""
    expected = alone("alone")["first"]
    first, second = sharded["loaded3"]
    agree(first["first"], expected)
    agree(second["first"] | {"weights": expected["weights"]}, expected)
    assert first["stage"] == 3
    assert "ZeRO stage 3" in first["refused"]


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_generates_what_one_process_does(sharded, alone, stage):
    answers = [None] * rank_program.ALL
    for rank, found in enumerate(sharded[f"sharded{stage}"]):
        answers[rank::2] = found["answers"]
    assert answers == alone("alone")["answers"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_an_uninterrupted_one(sharded, stage):
    """Bit for bit: a new trainer loads what was kept after two steps and does the third."""
    for found in sharded[f"sharded{stage}"]:
        whole, resumed = found["whole"], found["resumed"]
        assert {k: v for k, v in whole.items() if k in ("kl_coef", "running")} == {
            k: v for k, v in resumed.items() if k in ("kl_coef", "running")
        }
        unequal = {k: float((w - resumed["weights"][k]).abs().max()) for k, w in whole["weights"].items()}
        assert {k: x for k, x in unequal.items() if x > 0} == {}
        assert whole["stats"][0]["ppo/loss/total"] == resumed["stats"][0]["ppo/loss/total"]
    if found["first"]["weights"]:
        assert any((found["first"]["weights"][k] != whole["weights"][k]).any() for k in whole["weights"])


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_saved_loads_with_its_head(sharded, stage):
    found = sharded[f"sharded{stage}"][0]
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(f"{found['folder']}/model")
    state = loaded.state_dict()
    assert {*state} == {*found["first"]["weights"]}
    assert all((state[k] == v).all() for k, v in found["first"]["weights"].items())
    assert loaded(torch.tensor([[2, 3, 4]]))[2].shape == (1, 3)
