"""Advantages without values: by hand, against loops in plain numbers, and what must not change them."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Barrier

import pytest
import torch
from torch import tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from x_transformers import Decoder, TransformerWrapper

from ppo import (
    AutoModelForCausalLMWithValueHead,
    CausalLMPolicy,
    PPOConfig,
    PPOTrainer,
    Seq2SeqLMPolicy,
    XTransformersPolicy,
    groups_of,
    grpo_advantages,
    rloo_advantages,
)
from ppo.estimators import answer_rewards
from tests.ppo import tiny

pytestmark = pytest.mark.filterwarnings("ignore:no dataset was given")
GROUPS = tensor([0, 0, 1, 0, 1])
REWARDS = tensor([1.0, 2.0, 10.0, 6.0, 20.0], dtype=torch.float64)


# The numbers


def test_leave_one_out_by_hand():
    """Against the means of the others: (2 + 6)/2, (1 + 6)/2, (1 + 2)/2, and 20 and 10."""
    assert rloo_advantages(REWARDS, GROUPS).tolist() == [1 - 4, 2 - 3.5, -10, 6 - 1.5, 10]


def test_group_relative_by_hand():
    """Means 3 and 15; variances (4 + 1 + 9)/2 = 7 and (25 + 25)/1 = 50."""
    none = [-2.0, -1.0, -5.0, 3.0, 5.0]
    assert grpo_advantages(REWARDS, GROUPS, "none").tolist() == none
    deviations = [7**0.5 if group == 0 else 50**0.5 for group in GROUPS.tolist()]
    scaled = [value / (deviation + 1e-4) for value, deviation in zip(none, deviations, strict=True)]
    assert grpo_advantages(REWARDS, GROUPS).tolist() == pytest.approx(scaled, rel=1e-12)


def groups_in_plain_numbers(rewards, groups):
    return [[r for r, g in zip(rewards, groups, strict=True) if g == group] for group in groups]


def deviation(numbers):
    mean = sum(numbers) / len(numbers)
    return math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))


def oracle(name, rewards, groups):
    """The definitions, one answer at a time."""
    own = groups_in_plain_numbers(rewards, groups)
    if name.startswith("rloo"):
        found = [r - (sum(g) - r) / (len(g) - 1) for r, g in zip(rewards, own, strict=True)]
        mean = sum(found) / len(found)
        return [(a - mean) / (deviation(found) + 1e-4) for a in found] if name == "rloo normalized" else found
    centred = [r - sum(g) / len(g) for r, g in zip(rewards, own, strict=True)]
    if name == "grpo group":
        return [a / (deviation(g) + 1e-4) for a, g in zip(centred, own, strict=True)]
    return [a / (deviation(rewards) + 1e-4) for a in centred] if name == "grpo batch" else centred


FUNCTIONS = {
    "rloo": rloo_advantages,
    "rloo normalized": lambda *given, **more: rloo_advantages(*given, normalize=True, **more),
    "grpo group": grpo_advantages,
    "grpo batch": lambda *given, **more: grpo_advantages(*given, "batch", **more),
    "grpo none": lambda *given, **more: grpo_advantages(*given, "none", **more),
}


def drawn(seed):
    """Groups of 2 to 5 answers, in no order."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 6, (4,), generator=generator)
    groups = torch.arange(4).repeat_interleave(sizes)
    groups = groups[torch.randperm(len(groups), generator=generator)]
    return torch.randn(len(groups), generator=generator, dtype=torch.float64), groups


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_definitions_in_plain_numbers(name, seed):
    rewards, groups = drawn(seed)
    expected = oracle(name, rewards.tolist(), groups.tolist())
    assert FUNCTIONS[name](rewards, groups).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    single = FUNCTIONS[name](rewards.float(), groups)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_must_not_change_them(name, seed):
    """Each group's advantages add up to 0; a number added to a group's rewards, and the order, change nothing."""
    rewards, groups = drawn(seed)
    found = FUNCTIONS[name](rewards, groups)
    for group in groups.unique():
        assert float(found[groups == group].sum()) == pytest.approx(0, abs=1e-10)
    if name != "grpo batch":  # whose scale is of all rewards
        shifted = rewards + torch.randn(4, dtype=torch.float64)[groups]
        torch.testing.assert_close(FUNCTIONS[name](shifted, groups), found, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(FUNCTIONS[name](rewards + 3, groups), found, rtol=1e-9, atol=1e-12)
    order = torch.randperm(len(groups))
    torch.testing.assert_close(FUNCTIONS[name](rewards[order], groups[order]), found[order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(FUNCTIONS[name](rewards, 100 - 7 * groups), found, rtol=1e-9, atol=1e-12)


def test_leave_one_out_is_the_centred_reward_times_n_by_n_less_one():
    rewards, groups = drawn(0)
    n = groups.bincount()[groups]
    torch.testing.assert_close(rloo_advantages(rewards, groups), grpo_advantages(rewards, groups, "none") * n / (n - 1))


def test_equal_rewards_have_no_advantage():
    for function in FUNCTIONS.values():
        assert function(torch.full((4,), 0.7), tensor([0, 0, 1, 1])).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["rloo normalized", "grpo batch"])
def test_a_batch_on_two_ranks_is_one_batch(name):
    """Two threads stand for ranks that hold whole groups; each waits for the sum of the other."""
    rewards, groups = drawn(1)
    meet, slots = Barrier(2), [None, None]

    def rank(number):
        def reduce(total):
            slots[number] = total
            meet.wait(10)
            both = slots[0] + slots[1]
            meet.wait(10)
            return both

        at = (groups < 2) == (number == 0)
        return FUNCTIONS[name](rewards[at], groups[at], reduce=reduce)

    with ThreadPoolExecutor(2) as ranks:
        found = torch.cat(list(ranks.map(rank, range(2))))
    whole = FUNCTIONS[name](rewards, groups)
    expected = torch.cat([whole[groups < 2], whole[groups >= 2]])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_answer_without_others_is_named(name):
    with pytest.raises(ValueError, match=r"queries \[1, 3\] have only one answer in the batch.*at least twice"):
        FUNCTIONS[name](torch.ones(4), tensor([0, 1, 0, 2]))


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="scale_rewards = 'std' must be"):
        grpo_advantages(torch.ones(2), tensor([0, 0]), "std")


def test_groups_are_queries_of_the_same_tokens():
    queries = [tensor([3, 4]), tensor([3]), tensor([3, 4]), tensor([4, 3]), tensor([3])]
    assert groups_of(queries).tolist() == [0, 1, 0, 2, 1]


def test_the_reward_of_an_answer_is_what_its_mask_leaves():
    rewards, mask = tensor([[1.0, 2.0, 4.0], [math.nan, 1.0, -3.0]]), tensor([[1, 0, 1], [0, 1, 1]])
    assert answer_rewards(rewards, mask).tolist() == [5.0, -2.0]


# The trainer

POLICIES = {
    "causal": (tiny.gpt2, CausalLMPolicy),
    "seq2seq": (tiny.t5, Seq2SeqLMPolicy),
    "x": (lambda: tiny.x_causal().pretrained_model, XTransformersPolicy),
}


def batch_of_groups(start=None):
    """Two queries with two answers each."""
    queries, responses, scores = tiny.batch(start=start)
    return [queries[0], queries[1], queries[0], queries[1]], responses, scores


def made(model, ref_model=None, estimator="rloo", **changes):
    return PPOTrainer(tiny.config(advantage_estimator=estimator, **changes), model, ref_model, tiny.tokenizer())


def stepped(model, estimator, ref_model=None, **changes):
    trainer = made(model, ref_model, estimator, **changes)
    started = tiny.PAD if trainer.is_encoder_decoder else None
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    stats = trainer.step(*batch_of_groups(started))
    after = trainer.model.state_dict()
    return trainer, stats, {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_plain_model_is_trained_without_a_head(kind, estimator):
    make, cls = POLICIES[kind]
    model = make()
    trainer = made(model, None, estimator)
    assert type(trainer.model) is cls
    assert trainer.model.pretrained_model is model
    assert not any("v_head" in name for name, _ in trainer.model.named_parameters())
    before = [p.clone() for p in model.parameters()]
    stats = trainer.step(*batch_of_groups(tiny.PAD if kind == "seq2seq" else None))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    told = ("ppo/val/", "ppo/returns/", "ppo/loss/value")
    assert not [name for name in stats if name.startswith(told)]
    assert stats["ppo/loss/total"] == stats["ppo/loss/policy"]
    assert {"objective/kl", "ppo/mean_scores", "ppo/policy/entropy", "ppo/policy/advantages"} <= set(stats)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_every_token_has_the_advantage_of_its_answer(estimator):
    """Scores less the coefficient times the KL of the whole answer, through the same functions."""
    queries, responses, scores = batch_of_groups()
    trainer = tiny.trainer(tiny.causal(), advantage_estimator=estimator, ppo_epochs=1, init_kl_coef=0.5)
    stats = trainer.step(queries, responses, scores)
    kl = torch.from_numpy(stats["objective/kl_dist"])
    function = {"rloo": rloo_advantages, "grpo": grpo_advantages}[estimator]
    expected = function(torch.stack(scores) - 0.5 * kl, groups_of(queries))
    tokens = [[float(a)] * len(r) for a, r in zip(expected, responses, strict=True)]
    found = stats["ppo/policy/advantages"].tolist()
    assert sorted(found) == pytest.approx(sorted(chain(*tokens)), abs=1e-5)


def test_a_head_that_is_there_is_left_as_it_is():
    """And it changes nothing: the trunk moves as that of a model without one."""
    headed, _, changed = stepped(tiny.causal(), "rloo")
    assert not {"v_head.summary.weight", "v_head.summary.bias"} & changed
    plain, *_ = stepped(tiny.gpt2(), "rloo")
    for name, tensor_ in plain.model.pretrained_model.state_dict().items():
        torch.testing.assert_close(tensor_, headed.model.pretrained_model.state_dict()[name])


def test_the_default_needs_values():
    with pytest.raises(ValueError, match="model must be AutoModelForCausalLMWithValueHead"):
        made(tiny.gpt2(), estimator="gae")


def test_a_query_that_stands_once_is_named_before_any_update():
    trainer = made(tiny.gpt2())
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match=r"queries \[0, 1, 2, 3\] have only one answer in the batch"):
        trainer.step(*tiny.batch())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_plain_reference_may_be_given_but_not_the_policy_itself():
    model = tiny.gpt2()
    trainer, *_ = stepped(model, "grpo", ref_model=tiny.gpt2(seed=1))
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())
    with pytest.raises(ValueError, match="ref_model is model"):
        made(model, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.9}, "gamma = 0.9 is about rewards of tokens"),
        ({"whiten_rewards": True}, "whiten_rewards = True is about rewards of tokens"),
        ({"answers_per_prompt": 3}, "batch_size = 4 must be a multiple of answers_per_prompt = 3"),
    ],
)
def test_settings_that_cannot_be_honoured(changes, message):
    with pytest.raises(ValueError, match=message):
        made(tiny.gpt2(), **changes)


@pytest.mark.parametrize(
    "changes", [{"advantage_estimator": "reinforce"}, {"scale_rewards": "std"}, {"answers_per_prompt": 0}]
)
def test_the_configuration_knows_its_words(changes):
    with pytest.raises(ValueError):
        PPOConfig(**changes)


def test_the_data_loader_repeats_each_query():
    rows = [{"input_ids": tensor([2, 3]), "query": "w2 w3"}, {"input_ids": tensor([4]), "query": "w4"}]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return rows[index]

    def collate(items):
        return {name: [item[name] for item in items] for name in items[0]}

    config = tiny.config(advantage_estimator="rloo", answers_per_prompt=2)
    trainer = PPOTrainer(config, tiny.gpt2(), None, tiny.tokenizer(), dataset=Rows(), data_collator=collate)
    (batch,) = trainer.dataloader
    assert sorted(batch["query"]) == ["w2 w3", "w2 w3", "w4", "w4"]
    assert batch["query"][0] == batch["query"][1]
    responses = trainer.generate(batch["input_ids"], return_prompt=False, max_new_tokens=3, do_sample=True, top_k=0)
    assert trainer.step(batch["input_ids"], responses, [0.0, 1.0, 0.0, 1.0])["ppo/policy/skipped"] == 0


# What is saved


def test_the_plain_model_is_saved(tmp_path):
    trainer, *_ = stepped(tiny.gpt2(), "rloo")
    trainer.save_pretrained(tmp_path)
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    for name, value in trainer.model.pretrained_model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "A language model, trained with RLOO" in card and "AutoModelForCausalLMWithValueHead" not in card


def test_a_folder_with_a_head_is_loaded_without_it(tmp_path):
    headed = tiny.causal()
    headed.save_pretrained(tmp_path)
    policy = CausalLMPolicy.from_pretrained(str(tmp_path))
    assert not any("v_head" in name for name in policy.state_dict())
    for name, value in headed.pretrained_model.state_dict().items():
        assert torch.equal(value, policy.pretrained_model.state_dict()[name])
    policy.save_pretrained(tmp_path / "plain")
    with pytest.warns(UserWarning, match="head"):
        AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "plain"))


def test_an_encoder_decoder_is_saved_as_it_is(tmp_path):
    policy = Seq2SeqLMPolicy(tiny.t5())
    policy.save_pretrained(tmp_path)
    _, told = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"]


def test_a_network_of_x_transformers_is_saved_with_its_description(tmp_path):
    network = TransformerWrapper(num_tokens=24, max_seq_len=64, attn_layers=Decoder(dim=16, depth=1, heads=2))
    description = {"num_tokens": 24, "max_seq_len": 64, "dim": 16, "depth": 1, "heads": 2, "positions": "absolute"}
    policy = XTransformersPolicy(network.eval(), description=description)
    policy.save_pretrained(tmp_path)
    assert not (tmp_path / "pytorch_model.bin").exists()
    again = XTransformersPolicy.from_pretrained(tmp_path)
    ids = torch.arange(2, 8)[None]
    torch.testing.assert_close(again(ids)[0], policy(ids)[0])
    assert again(ids)[2].tolist() == [[0.0] * 6]
    CausalLMPolicy(tiny.gpt2()).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="Load it with CausalLMPolicy"):
        XTransformersPolicy.from_pretrained(tmp_path / "gpt2")


def test_an_adapter_is_trained_and_saved_alone(tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny.gpt2()
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"]))
    trainer, _, changed = stepped(model, "rloo")
    assert changed and all("lora" in name for name in changed)
    trainer.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / "pytorch_model.bin").exists()


def test_a_state_goes_on(tmp_path):
    """Two steps in one run, and one, a save, and another in a second run."""
    whole = made(tiny.gpt2(), tiny.gpt2(), "grpo")
    whole.step(*batch_of_groups())
    whole.save_state(tmp_path / "state")
    whole.step(*batch_of_groups())
    again = made(tiny.gpt2(seed=3), tiny.gpt2(), "grpo")
    again.load_state(tmp_path / "state")
    again.step(*batch_of_groups())
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rewards_in_whole_numbers(name):
    groups = torch.tensor([0, 0, 0])
    found = FUNCTIONS[name](torch.tensor([1, 0, 0]), groups)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, FUNCTIONS[name](torch.tensor([1.0, 0.0, 0.0]), groups))


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_advantages_of_a_subclass_are_not_passed_by(estimator):
    class Own(PPOTrainer):
        def compute_advantages(self, values, rewards, mask):
            return super().compute_advantages(values, rewards, mask)

    config = PPOConfig(batch_size=4, mini_batch_size=4, advantage_estimator=estimator)
    with pytest.raises(TypeError, match=r"Own\.compute_advantages would not be called: advantage_estimator"):
        Own(config, tiny.causal(), None, tiny.tokenizer())
