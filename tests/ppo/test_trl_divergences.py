"""Where TRL 0.11.4 is wrong: ours gives the right number, and not that of fixtures/trainer/divergences.json."""

import copy
from dataclasses import fields
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from ppo import (
    AdaptiveKLController,
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    get_global_statistics,
)
from tests.ppo import tiny
from tests.ppo.test_trl_step import FOLDER, compare, compare_weights, listed, load, model, tokenizer, trainer

FILE = load("divergences")
CASES = FILE["cases"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:no dataset was given"),
    pytest.mark.filterwarnings("ignore:responses are sampled with do_sample = False"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:the KL to the reference is"),
]


def made(case, side="right", **changes):
    """A trainer as the fixture describes it."""
    whole = {name: FILE[name] for name in ("model_config", "start")} | {"optimizer": {"name": "Adam"}} | case
    return trainer(whole | {"config": case["config"] | changes}, side)


def given(case, step=0):
    """Queries, responses and scores of one step."""
    inputs = case["inputs"]
    columns = [listed(inputs[name][step]) for name in ("queries", "responses")]
    return (*columns, listed(inputs["scores"][step])) if "scores" in inputs else tuple(columns)


def weights(found):
    return {name: value.detach().clone() for name, value in found.model.named_parameters()}


def flat(found):
    return torch.cat([value.detach().double().flatten() for value in found.model.parameters()])


def watched(found):
    """A list that gets the norm of the change of all weights, at each call of the optimizer's step."""
    norms, before = [], [flat(found)]

    def record(*_):
        now = flat(found)
        norms.append(float((now - before[0]).norm()))
        before[0] = now

    found.bare_optimizer.register_step_post_hook(record)
    return norms


def finite(stats):
    return {name for name, value in stats.items() if not np.isfinite(np.asarray(value, dtype=float)).all()} == set()


def forwarded(found, queries, responses):
    """(log-probs, values) of the response tokens alone, row by row, and the mask."""
    inputs = found.prepare_model_inputs(queries, responses)
    logprobs, _, values, mask = found.batched_forward_pass(found.model, queries, responses, inputs)
    return [[x[row][mask[row].bool()] for row in range(len(mask))] for x in (logprobs, values)], mask


def gae(values, rewards, gamma=1.0, lam=0.95):
    """Returns of one sequence without padding, by the recursion."""
    advantage, following, returns = 0.0, 0.0, []
    for value, reward in zip(reversed(values), reversed(rewards), strict=True):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        following = value
        returns.append(advantage + value)
    return returns[::-1]


def rows(case, name):
    """Each row of an input without what its mask leaves out."""
    pairs = zip(case["inputs"][name], case["inputs"]["mask"], strict=True)
    return [[x for x, m in zip(row, mask, strict=True) if m] for row, mask in pairs]


def advantages_of(case):
    found = tiny.trainer(**case["options"])
    inputs = {name: torch.tensor(value) for name, value in case["inputs"].items()}
    return found.compute_advantages(inputs["values"], inputs["rewards"], inputs["mask"]), inputs["mask"].bool()


def compared(found, wanted, theirs, inside):
    """Ours is the wanted number and theirs is not, over masked entries."""
    torch.testing.assert_close(found[inside], torch.tensor(wanted, dtype=found.dtype), rtol=1e-5, atol=1e-5)
    assert (found - torch.tensor(theirs))[inside].abs().max() > 1e-2


def test_there_is_a_test_for_every_case():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {*CASES} <= tested


def test_whitened_rewards_reach_padding():
    """Rewards of 9 tokens are divided by their deviation, their mean is kept; nothing flows back from the padding."""
    case = CASES["whitened_rewards_reach_padding"]
    kept = rows(case, "rewards")
    every = np.array([*chain(*kept)])
    scaled = [[(r - every.mean()) / every.std(ddof=1) + every.mean() for r in row] for row in kept]
    wanted = [gae(v, r) for v, r in zip(rows(case, "values"), scaled, strict=True)]
    (_, advantages, returns), inside = advantages_of(case)
    assert wanted[0] == pytest.approx([1.70764, 2.10777, 2.52369], abs=1e-5)
    compared(returns, [*chain(*wanted)], case["outputs"]["returns"], inside)
    raw = np.array([*chain(*wanted)]) - np.array([*chain(*rows(case, "values"))])
    compared(
        advantages,
        ((raw - raw.mean()) / raw.std(ddof=1)).tolist(),
        case["outputs"]["advantages"],
        inside,
    )
    assert (returns[~inside] == 0).all()


def test_holes_are_states_of_value_zero():
    """As if the two tokens that somebody else wrote were not there: four states in a row."""
    case = CASES["holes_are_states_of_value_zero"]
    wanted = gae(rows(case, "values")[0], rows(case, "rewards")[0])
    assert wanted == pytest.approx([0.91820, 0.95600, 0.98, 1.0], abs=1e-5)
    (_, _, returns), inside = advantages_of(case)
    compared(returns, wanted, case["outputs"]["returns"], inside)


def test_mask_ignored_by_the_sum():
    """1, 2, 3 have mean 2 and variance (1 + 0 + 1) / 3; with the 100 their sum would be 106."""
    case = CASES["mask_ignored_by_the_sum"]
    xs, mask = (torch.tensor(case["inputs"][name]) for name in ("xs", "mask"))
    found = [float(x) for x in get_global_statistics(tiny.trainer().accelerator, xs, mask)]
    assert found == pytest.approx([2.0, 2 / 3, 3])
    assert case["outputs"]["mean"] == pytest.approx(106 / 3)


def test_multiplier_below_zero():
    """1 - 0.2 * 1000 / 100 is -1: the coefficient may become 0, and a reward for KL never."""
    case = CASES["multiplier_below_zero"]
    inputs = case["inputs"]
    controller = AdaptiveKLController(inputs["start"], inputs["target"], inputs["horizon"])
    controller.update(inputs["currents"][0], inputs["counts"][0])
    assert controller.value == 0.0
    assert case["outputs"]["values"] == [-0.2]


def test_clipping_only_on_the_first_update():
    """SGD moves the weights by rate times gradient: with gradients of norm 1e-3 at most, by 0.1 * 1e-3."""
    case = CASES["clipping_only_on_the_first_update"]
    found = made(case)
    norms = watched(found)
    for step in range(2):
        found.step(*given(case, step))
    assert len(norms) == 8  # 2 steps of 2 epochs of 2 mini-batches
    # All of these gradients are longer than 1e-3; the weights, around 1, are rounded at 1e-7.
    assert norms == pytest.approx([1e-4] * 8, rel=1e-3)
    assert norms[0] == pytest.approx(case["outputs"]["update_norms"][0], rel=1e-4)
    assert min(case["outputs"]["update_norms"][1:]) > 0.1


def test_guard_still_moves_weights():
    """Every mini-batch of the second step is beyond the guard: Adam's momentum must not move anything either."""
    case = CASES["guard_still_moves_weights"]
    found = made(case)
    norms = watched(found)
    found.step(*given(case, 0))
    assert len(norms) == 4
    found.config.ratio_threshold = 1e-9
    before, moments = weights(found), copy.deepcopy(found.optimizer.state_dict())
    stats = found.step(*given(case, 1))
    assert len(norms) == 4
    assert all(torch.equal(value, before[name]) for name, value in weights(found).items())
    now = found.optimizer.state_dict()
    assert now["param_groups"] == moments["param_groups"]
    for key, state in moments["state"].items():
        assert all(torch.equal(now["state"][key][name], value) for name, value in state.items())
    assert finite(stats)
    theirs = case["outputs"]
    assert theirs["guarded_updates"] == 4
    assert min(theirs["greatest_changes"]) > 5e-4


def test_left_padding_shifts_absolute_positions():
    """On which side the padding stands changes nothing: ours on the left are theirs on the right."""
    case = CASES["left_padding_shifts_absolute_positions"]
    queries, responses, _ = given(case)
    (logprobs, values), mask = forwarded(made(case, "left"), queries, responses)
    assert mask.sum(-1).tolist() == [4, 2, 6, 3]
    differ = 0
    for name, found in (("response_logprobs", logprobs), ("response_values", values)):
        for row, ours in enumerate(found):
            right, left = (torch.tensor(case["outputs"][side][name][row]) for side in ("right", "left"))
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=2e-5)
            differ += int((ours - left).abs().max() > 1e-2)
    assert differ == 6  # all rows but the longest, which has no padding


def encoder_decoder(case, **changes):
    policy, reference = (model(FILE["seq2seq_config"], FILE["start"]["seq2seq"], seq2seq=True) for _ in range(2))
    wanted = {k: v for k, v in case["config"].items() if k in {key.name for key in fields(PPOConfig)}}
    return PPOTrainer(PPOConfig(**(wanted | changes)), policy, reference, tokenizer())


def test_decoder_mask_misses_the_first_token():
    """Column 0 belongs to the first generated token: it is what the policy said, so it is trained."""
    case = CASES["decoder_mask_misses_the_first_token"]
    found = encoder_decoder(case)
    queries, responses = (listed(case["inputs"][name]) for name in ("queries", "responses"))
    (logprobs, _), mask = forwarded(found, queries, responses)
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert case["outputs"]["masks"] == [[0, 1, 1], [0, 1, 0]]
    base = found.model.pretrained_model
    for query, response, ours in zip(queries, responses, logprobs, strict=True):
        with torch.no_grad():
            logits = base(input_ids=query[None], decoder_input_ids=response[None, :-1]).logits[0]
        wanted = logits.log_softmax(-1).gather(-1, response[1:, None])[:, 0]
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    stored = torch.tensor(case["outputs"]["logprobs"])
    torch.testing.assert_close(torch.cat(logprobs), stored[mask.bool()], rtol=1e-5, atol=1e-5)


def test_shortest_decoder_response_fails():
    """The start token and the end token are one generated token; the other response has two: 3 in each epoch."""
    case = CASES["shortest_decoder_response_fails"]
    found = encoder_decoder(case)
    before = flat(found)
    stats = found.step(*(listed(case["inputs"][name]) for name in ("queries", "responses", "scores")))
    assert finite(stats)
    assert len(stats["ppo/policy/advantages"]) == 2 * 3
    assert flat(found).isfinite().all()
    assert (flat(found) - before).abs().max() > 1e-4
    assert case["outputs"]["exception"] == "IndexError"


@pytest.mark.parametrize("norm", [False, True])
def test_score_scaling_fails(norm):
    """Of the first batch the running deviation is its own: the scores get deviation 1, with norm also mean 0."""
    case = CASES["score_scaling_fails"]
    found = made(case, use_score_norm=norm)
    queries, responses, scores = given(case)
    stats = found.step(queries, responses, scores)
    raw = torch.stack(scores)
    assert stats["ppo/std_scores"] == pytest.approx(1.0, abs=1e-5)
    assert stats["ppo/mean_scores"] == pytest.approx(0.0 if norm else float(raw.mean() / raw.std()), abs=1e-5)
    assert case["outputs"]["exception"] == "AttributeError"


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index


def test_last_loader_batch_ends_accumulation():
    """A window of 4 micro-batches is one update, also on the last batch of the trainer's own loader."""
    case = CASES["last_loader_batch_ends_accumulation"]
    found = made(case)
    loader = found.prepare_dataloader(Rows(), list)
    norms, counts = watched(found), []
    for step, samples in enumerate(loader):
        assert len(samples) == 4
        found.step(*given(case, step))
        counts.append(len(norms) - sum(counts))
    outside, inside = case["outputs"]["outside"], case["outputs"]["inside"]
    assert counts == outside["updates"] == [1, 1]
    assert inside["updates"] == [1, 4]
    assert norms == pytest.approx(outside["update_norms"], rel=1e-4)
    compare_weights(found, outside)
    with pytest.raises(AssertionError):
        compare_weights(found, inside)


@pytest.mark.parametrize("kind", ["one_mini_batch", "four_micro_batches"])
def test_unequal_micro_batches_weigh_alike(kind):
    """A mean over 15 tokens is one, however they are cut: four micro-batches give what one mini-batch gives."""
    case = CASES["unequal_micro_batches_weigh_alike"]
    outputs = case["outputs"]
    found = made(case, **outputs[kind]["options"])
    norms = watched(found)
    found.step(*given(case))
    assert norms == pytest.approx(outputs["one_mini_batch"]["update_norms"], rel=1e-5)
    named = {name.removeprefix("pretrained_model."): value for name, value in weights(found).items()}
    for name, wanted in outputs["one_mini_batch"]["weights"].items():
        assert (named[name] - torch.tensor(wanted)).abs().max() <= 1e-6
        assert (named[name] - torch.tensor(outputs["four_micro_batches"]["weights"][name])).abs().max() > 1e-4
    compare_weights(found, outputs["one_mini_batch"])


def test_single_token_batch_is_nan():
    """One advantage whitened is 0, so only the value is trained; the return of the token is its reward."""
    case = CASES["single_token_batch_is_nan"]
    found = made(case)
    before = flat(found)
    stats = found.step(*given(case))
    assert finite(stats)
    assert flat(found).isfinite().all()
    assert (flat(found) - before).abs().max() > 1e-4
    assert stats["ppo/policy/advantages"].tolist() == [0.0, 0.0]
    assert stats["ppo/loss/policy"] == 0.0
    reward = case["inputs"]["scores"][0][0] - 0.2 * stats["objective/kl"]
    assert stats["ppo/returns/mean"] == pytest.approx(reward, abs=1e-5)
    assert [stats[name] for name in ("ppo/returns/var", "ppo/val/var", "ppo/std_scores")] == [0.0, 0.0, 0.0]
    theirs = case["outputs"]
    assert theirs["nan_parameters"] == theirs["parameters"]
    assert {*theirs["nan_statistics"]} <= {*stats}


def test_single_token_mini_batch_is_nan():
    """The variance of one token's return is 0: averaged with that of the other mini-batch, half of its."""
    case = CASES["single_token_mini_batch_is_nan"]
    queries, responses, scores = given(case)
    found = made(case)
    inputs = found.prepare_model_inputs(queries, responses)
    passes = [found.batched_forward_pass(m, queries, responses, inputs) for m in (found.model, found.ref_model)]
    (logprobs, _, values, mask), (ref_logprobs, *_) = passes
    row = mask[1].bool()
    rewards = -0.2 * (logprobs - ref_logprobs)[1][row]
    rewards[-1] += scores[1]
    of_row = torch.tensor(gae(values[1][row].tolist(), rewards.tolist()))
    stats = found.step(queries, responses, scores)
    assert stats["ppo/returns/var"] == pytest.approx(float(of_row.var()) / 2, rel=1e-4)
    assert stats["ppo/val/var"] == pytest.approx(float(values[1][row].var()) / 2, rel=1e-4)
    broken = {*case["outputs"]["nan_statistics"]}
    assert broken == {"ppo/returns/var", "ppo/val/var", "ppo/val/var_explained"}
    assert finite(stats)
    compare(stats, {name: value for name, value in case["outputs"]["stats"].items() if name not in broken})


def test_one_sample_deviation_is_nan():
    """One number does not deviate."""
    case = CASES["one_sample_deviation_is_nan"]
    stats = made(case).step(*given(case))
    assert finite(stats)
    for name, theirs in case["outputs"].items():
        assert stats[name] == 0.0
        assert np.isnan(theirs)


def test_empty_response_fails():
    """A response without tokens has no action to learn from: it is named, and nothing has changed."""
    case = CASES["empty_response_fails"]
    found = made(case)
    before = flat(found)
    queries, responses, scores = given(case)
    with pytest.raises(ValueError, match=r"responses\[0\] is empty"):
        found.step(queries, [responses[0].long(), responses[1]], scores)
    assert torch.equal(flat(found), before)
    assert case["outputs"]["exception"] == "IndexError"


def test_whole_number_scores_fail():
    """1, 0, 2, 1 have mean 1 and deviation sqrt(2 / 3); they are the same scores as 1.0, 0.0, 2.0, 1.0."""
    case = CASES["whole_number_scores_fail"]
    queries, responses, scores = given(case)
    assert not scores[0].is_floating_point()
    whole, real = made(case), made(case)
    stats = whole.step(queries, responses, scores)
    assert stats["ppo/mean_scores"] == 1.0
    assert stats["ppo/std_scores"] == pytest.approx((2 / 3) ** 0.5)
    real.step(queries, responses, [score.float() for score in scores])
    assert torch.equal(flat(whole), flat(real))
    assert case["outputs"]["exception"] == "RuntimeError"


def test_statistics_of_unmasked_positions():
    """Five response tokens have five advantages, of mean 0 and variance 1; theirs lists the prompts' as well."""
    case = CASES["statistics_of_unmasked_positions"]
    stats = made(case).step(*given(case))
    found, theirs = stats["ppo/policy/advantages"], case["outputs"]["ppo/policy/advantages"]
    assert (len(found), len(stats["ppo/policy/ratio"]), len(theirs)) == (5, 5, 8)
    assert found.mean() == pytest.approx(0.0, abs=1e-6)
    assert found.var(ddof=1) == pytest.approx(1.0, abs=1e-5)
    assert all(min(abs(one - other) for other in theirs) < 1e-4 for one in found)
    assert stats["ppo/policy/ratio"] == pytest.approx([1.0] * 5, abs=1e-5)
    assert np.var(theirs, ddof=1) != pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("training", [False, True])
def test_training_mode_after_step(training):
    """Half of all activations would be dropped in training mode: no two greedy answers would be equal."""
    case = CASES["training_mode_after_step"]
    policy = model(FILE["model_config"] | case["model_changes"], FILE["start"]["policy"])
    found = PPOTrainer(
        PPOConfig(**case["config"]), policy, model(FILE["model_config"], FILE["start"]["reference"]), tokenizer()
    )
    assert sum(isinstance(part, nn.Dropout) and part.p == 0.5 for part in policy.modules()) > 3
    policy.train(training)
    stats = found.step(*given(case))
    assert {part.training for part in policy.modules()} == {training}
    query = given(case)[0][0]
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    texts = {tuple(found.generate(query, **options)[0].tolist()) for _ in range(6)}
    assert len(texts) == 1
    assert {part.training for part in policy.modules()} == {training}
    # No dropout in the updates either: the first mini-batch is scored as it was before.
    assert stats["ppo/policy/ratio"][:5] == pytest.approx([1.0] * 5, abs=1e-5)
    assert case["outputs"]["after_training"]
    assert case["outputs"]["after_distinct_greedy_outputs"] == 6


def stopped(over, target=None):
    """A step with the limit (of the fixture, or another): the trainer, and its number of updates."""
    case = CASES["early_stop_looks_at_the_last_mini_batch"]
    options = case["outputs"]["with_limit"]["options"] | {"early_stopping_over": over}
    if target is not None:
        options["target_kl"] = target
    found = made(case, **options)
    norms = watched(found)
    found.step(*given(case))
    return found, len(norms)


def test_early_stop_looks_at_the_last_mini_batch():
    """Over "last", theirs; over "epoch", the mean of each epoch's tokens, which is below the limit in all four."""
    case = CASES["early_stop_looks_at_the_last_mini_batch"]
    free, limited = (case["outputs"][name] for name in ("without_limit", "with_limit"))
    limit = 1.5 * limited["options"]["target_kl"]
    lengths = [len(response) for response in case["inputs"]["responses"][0]]
    epochs = []
    for i, order in enumerate(free["permutations"]):
        tokens = [sum(lengths[row] for row in part) for part in (order[:2], order[2:])]
        kls = free["minibatch_policykl"][2 * i : 2 * i + 2]
        epochs.append(sum(kl * n for kl, n in zip(kls, tokens, strict=True)) / sum(tokens))
    assert epochs[0] == pytest.approx(free["first_epoch_mean_policykl"])
    assert max(epochs) < limit < free["minibatch_policykl"][1]
    found, updates = stopped("last")
    assert updates == limited["updates"] == 2
    compare_weights(found, limited, key_bias_noise=1e-1)  # ten times the usual learning rate
    found, updates = stopped("epoch")
    assert updates == free["updates"] == 8
    # Adam makes whole steps of the rounding noise in the gradients of key biases; after eight they differ.
    kept = {name: value for name, value in free["abs_sums"].items() if not name.endswith("attn.c_attn.bias")}
    assert len(kept) == 39
    compare_weights(found, {"abs_sums": kept})
    # With a limit just below and just above the mean of the first epoch.
    assert stopped("epoch", 0.99 * epochs[0] / 1.5)[1] == 2
    assert stopped("epoch", 1.01 * epochs[0] / 1.5)[1] == 8


def with_gradients(found):
    """A list that gets, at each pass through an attention, whether gradients are on."""
    calls = []
    for layer in found.model.pretrained_model.transformer.h:
        layer.attn.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_without_effect():
    """Each of 4 mini-batches goes through a layer once, and with checkpointing once more on the way back."""
    case = CASES["gradient_checkpointing_without_effect"]
    ended = {}
    for checkpointing in (False, True):
        found = made(case | {"optimizer": {"name": "SGD", "lr": 0.1}}, gradient_checkpointing=checkpointing)
        calls, modes = with_gradients(found), [part.training for part in found.model.modules()]
        found.step(*given(case))
        assert sum(calls) == 3 * 4 * (2 if checkpointing else 1)
        assert [part.training for part in found.model.modules()] == modes
        ended[checkpointing] = flat(found)
    torch.testing.assert_close(ended[True], ended[False], rtol=0, atol=1e-7)
    assert case["outputs"]["layer_flags"] == [True] * 3
    assert case["outputs"]["checkpointed_calls"] == 0


def test_prompt_cut_at_its_eos():
    """An end token inside the prompt ends nothing: prompt and answer are what they are apart."""
    case = CASES["prompt_cut_at_its_eos"]
    found, queries = made(case), listed(case["inputs"]["queries"])
    answers = [row.tolist() for row in found.generate(queries, return_prompt=False, **case["generation"])]
    assert answers == case["outputs"]["list_without_prompt"]
    whole = [row.tolist() for row in found.generate(queries, **case["generation"])]
    assert whole == [query.tolist() + answer for query, answer in zip(queries, answers, strict=True)]
    assert whole[0] == case["outputs"]["one_tensor_with_prompt"]
    assert whole[0] != case["outputs"]["list_with_prompt"][0] == [5, 1]
    assert found.generate(queries[0], **case["generation"])[0].tolist() == whole[0]


def test_start_token_taken_for_eos():
    """BART begins its answers with the end token: five tokens are asked for, five come behind it."""
    case = CASES["start_token_taken_for_eos"]
    torch.manual_seed(0)
    bart = tiny.sharpened(BartForConditionalGeneration(BartConfig(**case["model_config"])))
    policy = AutoModelForSeq2SeqLMWithValueHead(bart, summary_dropout_prob=0.0)
    found = PPOTrainer(tiny.config(batch_size=2), policy, None, tokenizer())
    queries = listed(case["inputs"]["queries"])
    answers = [row.tolist() for row in found.generate(queries, **case["generation"])]
    for query, answer in zip(queries, answers, strict=True):
        assert answer == bart.generate(query[None], **case["generation"])[0].tolist()
        assert len(answer) == 6
        assert answer[0] == 1
        assert 1 not in answer[1:]
        assert found.generate(query, **case["generation"])[0].tolist() == answer
    assert case["outputs"]["list"] == [[1], [1]]
    # What generate gave is what step takes.
    stats = found.step(queries, listed(answers), [torch.tensor(1.0), torch.tensor(0.0)])
    assert finite(stats)
    assert len(stats["ppo/policy/advantages"]) == 2 * 10


def test_reference_generation_with_the_adapter():
    """The reference of an adapted policy is the base model, so its answers are the base model's."""
    peft = pytest.importorskip("peft")
    case = CASES["reference_generation_with_the_adapter"]
    described = {k: v for k, v in FILE["model_config"].items() if k != "model_type"}
    base = GPT2LMHeadModel(GPT2Config(**described))
    stored = load_file(FOLDER / case["start"]["policy"])
    base.load_state_dict({k: v for k, v in stored.items() if "v_head" not in k}, strict=False)
    base.tie_weights()
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **case["lora"]))
    named = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, value in load_file(FOLDER / case["start"]["adapter"]).items():
            named[name].copy_(value)
    policy = AutoModelForCausalLMWithValueHead(adapted, summary_dropout_prob=0.0)
    found = PPOTrainer(PPOConfig(**case["config"]), policy, None, tokenizer())
    assert found.ref_model is None
    queries, outputs = listed(case["inputs"]["queries"]), case["outputs"]
    options = case["generation"]
    lists = [[row.tolist() for row in rows] for rows in found.generate(queries, generate_ref_response=True, **options)]
    assert lists == [outputs["list"]["policy"], outputs["base_model"]]
    for i, query in enumerate(queries):
        pair = found.generate(query, generate_ref_response=True, **options)
        assert [rows[0].tolist() for rows in pair] == [outputs["list"]["policy"][i], outputs["base_model"][i]]
    assert outputs["list"]["reference"] == outputs["list"]["policy"] != outputs["base_model"]
