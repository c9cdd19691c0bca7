"""PPOTrainer as it is used: made, fed, asked to generate, stepped, logged, saved and gone on with."""

import copy
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from torch import nn, tensor
from torch.optim.lr_scheduler import LambdaLR

from dpo.models.x_transformers import XTransformersModel
from ppo import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    LengthSampler,
    PPOTrainer,
    XTransformersWithValueHead,
    create_reference_model,
)
from ppo.update import Batch
from tests.dpo.tiny import x_config
from tests.ppo import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:no dataset was given"),
    pytest.mark.filterwarnings("ignore:responses are sampled with do_sample = False"),
    pytest.mark.filterwarnings("ignore:the KL to the reference is"),
    pytest.mark.filterwarnings("ignore:`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated"),
]
KINDS = ["gpt2", "t5", "x"]
GREEDY = {"do_sample": False, "max_new_tokens": 5}
NO_END = {"eos_token_id": tiny.VOCABULARY + 75}  # a token that is never generated


def policy(kind, seed=0):
    return {"gpt2": tiny.causal, "t5": tiny.seq2seq, "x": tiny.x_causal}[kind](seed)


def trainer(kind="gpt2", optimizer=None, **changes):
    return tiny.trainer(policy(kind), policy(kind, 1), optimizer, **changes)


def batch(kind="gpt2", **options):
    return tiny.batch(start=tiny.PAD if kind == "t5" else None, **options)


def sgd(lr=0.1, seed=0, **changes):
    """A trainer whose updates are the learning rate times the gradient."""
    model = tiny.causal(seed)
    return tiny.trainer(model, tiny.causal(1), torch.optim.SGD(model.parameters(), lr=lr), **changes)


def flat(model):
    return torch.cat([value.detach().double().flatten() for value in model.parameters()])


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def counted(found):
    """A list that grows by one at each call of the optimizer's step."""
    calls = []
    found.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    return calls


def same(found, wanted, **close):
    """Two steps' statistics, but for the times."""
    assert {*found} == {*wanted}
    for name, value in wanted.items():
        if not name.startswith("time/"):
            np.testing.assert_allclose(found[name], value, err_msg=name, **close)


# The constructor


def test_the_arguments_are_trls():
    names = "config model ref_model tokenizer dataset optimizer data_collator num_shared_layers lr_scheduler"
    assert " ".join(inspect.signature(PPOTrainer).parameters) == names


class Numbers(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"input_ids": torch.full((3,), index)}


def test_all_nine_arguments_are_used():
    model, reference = tiny.causal(0), tiny.causal(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    config, tokenizer, dataset = tiny.config(), tiny.tokenizer(), Numbers(8)
    with pytest.warns(UserWarning, match="num_shared_layers = 1 is ignored: ref_model is given") as seen:
        found = PPOTrainer(config, model, reference, tokenizer, dataset, optimizer, len, 1, scheduler)
    assert seen[0].filename == __file__
    assert found.config is config
    assert found.model is model
    assert found.ref_model is reference
    assert found.tokenizer is tokenizer
    assert found.dataset is dataset
    assert found.optimizer is optimizer
    assert list(found.dataloader) == [4, 4]
    assert found.lr_scheduler is scheduler
    assert not any(p.requires_grad for p in reference.parameters())
    assert not reference.training


def without_pad():
    found = tiny.tokenizer()
    found.pad_token = None
    return found


WRONG = {
    "config": ({"seed": 0}, "config must be a ppo.PPOConfig, not builtins.dict"),
    "model": (nn.Linear(1, 1), "model must be AutoModelForCausalLMWithValueHead, .* not torch.*Linear"),
    "ref_model": (nn.Linear(1, 1), "ref_model must be .*, or None, not torch.*Linear"),
    "ref_model of another kind": (tiny.seq2seq, "model and ref_model must be of one kind"),
    "tokenizer": (None, "tokenizer must be a tokenizer of transformers, not builtins.NoneType"),
    "tokenizer without padding": (without_pad, "no padding token: set tokenizer.pad_token = tokenizer.eos_token"),
    "dataset": ([1, 2], "dataset must be a torch.utils.data.Dataset or a datasets.Dataset, not builtins.list"),
    "optimizer": ("adam", "optimizer must be a torch.optim.Optimizer, not builtins.str"),
    "lr_scheduler": (0.1, "lr_scheduler must be a torch.optim.lr_scheduler.LRScheduler, not builtins.float"),
    "lr_scheduler alone": (
        lambda: LambdaLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), lambda step: 1.0),
        "its own optimizer: give that optimizer too",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_constructor_refuses(name):
    value, text = WRONG[name]
    arguments = {"config": tiny.config(), "model": tiny.causal(), "ref_model": tiny.causal(1)}
    arguments |= {"tokenizer": tiny.tokenizer()}
    key = name.split()[0]
    made = value() if callable(value) and not isinstance(value, nn.Module) else value
    with pytest.raises(ValueError, match=text):
        PPOTrainer(**(arguments | {key: made}))


def test_checkpointing_of_a_network_that_cannot_is_refused():
    """x-transformers keeps all activations: asking for the other thing is a mistake in the configuration."""
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        trainer("x", gradient_checkpointing=True)


def test_the_policy_is_not_its_own_reference():
    """Freezing the reference would freeze the policy."""
    model = tiny.causal()
    with pytest.raises(ValueError, match="ref_model"):
        PPOTrainer(tiny.config(), model, model, tiny.tokenizer())


def test_no_dataset_is_told():
    with pytest.warns(UserWarning, match="dataloader is None, hand queries to generate yourself") as seen:
        found = PPOTrainer(tiny.config(), tiny.causal(), tiny.causal(1), tiny.tokenizer())
    assert seen[0].filename == __file__
    assert found.dataloader is None


def test_the_reference_is_a_frozen_copy():
    model = tiny.causal()
    found = PPOTrainer(tiny.config(), model, None, tiny.tokenizer())
    own = dict(model.named_parameters())
    for name, value in found.ref_model.named_parameters():
        assert torch.equal(value, own[name])
        assert value.data_ptr() != own[name].data_ptr()
        assert not value.requires_grad
    assert not found.ref_model.training
    assert all(value.requires_grad for value in own.values())
    before = flat(found.ref_model)
    found.step(*batch())
    assert torch.equal(flat(found.ref_model), before)
    assert not torch.equal(flat(model), before)


def test_shared_layers_are_in_memory_once():
    """One shared layer: the embeddings and layer 0, which then nobody trains."""
    model = tiny.causal(0, tie_word_embeddings=False)
    found = PPOTrainer(tiny.config(), model, None, tiny.tokenizer(), num_shared_layers=1)
    own = dict(model.named_parameters())
    shared = {n for n, value in found.ref_model.named_parameters() if value.data_ptr() == own[n].data_ptr()}
    assert shared == {n for n in own if ".wte." in n or ".wpe." in n or ".h.0." in n}
    trained = {id(p) for group in found.optimizer.param_groups for p in group["params"]}
    assert trained == {id(value) for n, value in own.items() if n not in shared}
    before = weights(model)
    stats = found.step(*batch())
    assert stats["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert changed(model, before).isdisjoint(shared)
    assert changed(model, before)


def test_ties_across_shared_layers_are_told_to_the_caller():
    """GPT-2's output head is its embedding, which is shared and therefore frozen."""
    with pytest.warns(UserWarning, match="ties weights across the shared layers") as seen:
        PPOTrainer(tiny.config(), tiny.causal(), None, tiny.tokenizer(), num_shared_layers=1)
    (told,) = [w for w in seen if "ties weights" in str(w.message)]
    assert told.filename == __file__


def test_the_optimizer_is_adam_over_what_is_trained():
    model = tiny.causal()
    model.pretrained_model.transformer.wpe.requires_grad_(False)
    found = tiny.trainer(model, learning_rate=0.003)
    assert type(found.optimizer) is torch.optim.Adam
    (group,) = found.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.003, 0)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]
    assert len(group["params"]) == len([*model.parameters()]) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_is_told_what_is_found_out(kind):
    config = trainer(kind, mini_batch_size=1, gradient_accumulation_steps=2).config
    assert (config.world_size, config.global_batch_size, config.global_backward_batch_size) == (1, 4, 2)
    assert (config.is_encoder_decoder, config.is_peft_model) == (kind == "t5", False)


# The loader


@pytest.mark.parametrize("kept", [True, False])
def test_columns_that_nothing_reads_are_dropped(kept):
    datasets = pytest.importorskip("datasets")
    names = ["input_ids", "attention_mask", "query", "response", "label", "junk"]
    rows = datasets.Dataset.from_dict({name: [[1, 2]] * 4 for name in names})
    found = tiny.trainer(remove_unused_columns=not kept)
    seen = next(iter(found.prepare_dataloader(rows, lambda samples: {*samples[0]})))
    assert seen == ({*names} if kept else {*names} - {"junk"})
    assert rows.column_names == names


@pytest.mark.parametrize("size, length", [(2, 0), (3, 1), (5, 1), (7, 2)])
def test_incomplete_batches_are_left_out(size, length):
    found = tiny.trainer(batch_size=3, mini_batch_size=3)
    loader = found.prepare_dataloader(Numbers(size))
    assert len(loader) == len(list(loader)) == length
    assert all(part["input_ids"].shape == (3, 3) for part in loader)


def test_batches_are_shuffled():
    """Each sample once an epoch, in another order each time: of 40! orders two are hardly the same."""
    loader = tiny.trainer().prepare_dataloader(Numbers(40))
    epochs = [[int(row[0]) for part in loader for row in part["input_ids"]] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(40)]] * 2
    assert epochs[0] != epochs[1]
    assert [*range(40)] not in epochs


# Generation


def test_shapes_of_what_is_generated():
    found = tiny.trainer()
    queries, _, _ = batch()
    one = found.generate(queries[0], **GREEDY, **NO_END)
    assert one.shape == (1, len(queries[0]) + 5)
    assert torch.equal(one[0, : len(queries[0])], queries[0])
    several = found.generate(queries, **GREEDY, **NO_END)
    assert [row.shape for row in several] == [(len(query) + 5,) for query in queries]
    assert isinstance(found.generate(queries[:1], **GREEDY), list)
    alone = found.generate(queries, return_prompt=False, **GREEDY, **NO_END)
    assert all(torch.equal(a, w[len(q) :]) for a, w, q in zip(alone, several, queries, strict=True))


@pytest.mark.parametrize(
    "query, text",
    [
        (torch.ones(2, 3, dtype=torch.long), r"query 0 must be a tensor of shape \(length,\), not \(2, 3\)"),
        ([tensor([2]), torch.ones(1, 2, dtype=torch.long)], r"query 1 .* not \(1, 2\)"),
        ([tensor([], dtype=torch.long)], r"query 0 .* not \(0,\)"),
        ([[2, 3]], "query 0 .* not list"),
        ("w2 w3", "query 0 .* not str"),
    ],
)
def test_what_generate_refuses(query, text):
    with pytest.raises(ValueError, match=text):
        tiny.trainer().generate(query, **GREEDY)


def test_a_length_is_drawn_for_each_chunk():
    """Five queries, two at a time: three lengths."""
    found, drawn = tiny.trainer(), []
    inner = LengthSampler(2, 9, seed=3)

    def sampler():
        drawn.append(inner())
        return drawn[-1]

    answers = found.generate(batch(size=5)[0], sampler, 2, return_prompt=False, do_sample=False, **NO_END)
    assert len(drawn) == 3
    assert [len(row) for row in answers] == [drawn[0], drawn[0], drawn[1], drawn[1], drawn[2]]
    assert len({*drawn}) > 1


def test_an_answer_ends_with_its_first_end_token():
    found = tiny.trainer()
    query = batch()[0][0]
    free = found.generate([query], return_prompt=False, **GREEDY, **NO_END)[0].tolist()
    end = free[2]
    ended = found.generate([query], return_prompt=False, eos_token_id=end, **GREEDY)[0].tolist()
    assert ended == free[: free.index(end) + 1]


def test_answers_of_policy_and_reference():
    found = tiny.trainer()
    queries, _, _ = batch()
    ours, theirs = found.generate(queries, generate_ref_response=True, **GREEDY)
    alone = tiny.trainer(tiny.causal(1), tiny.causal(0)).generate(queries, **GREEDY)
    assert [row.tolist() for row in theirs] == [row.tolist() for row in alone]
    assert [row.tolist() for row in ours] == [row.tolist() for row in found.generate(queries, **GREEDY)]
    assert [row.tolist() for row in ours] != [row.tolist() for row in theirs]
    pair = found.generate(queries[0], generate_ref_response=True, **GREEDY)
    assert [rows.tolist() for rows in pair] == [[ours[0].tolist()], [theirs[0].tolist()]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_greedy_answer(kind, side):
    """Queries of 2 to 5 tokens answered together are answered as each alone, whatever the tokenizer's side."""
    found = trainer(kind, side=side)
    queries = [query for seed in range(3) for query in batch(seed=seed)[0]]
    together = found.generate(queries, batch_size=5, **GREEDY)
    assert len({len(query) for query in queries}) > 2
    assert len({tuple(row.tolist()) for row in together}) > 6
    for query, row in zip(queries, together, strict=True):
        assert row.tolist() == found.generate(query, **GREEDY)[0].tolist()
    assert found.tokenizer.padding_side == side


def test_a_decoder_keeps_its_start_token():
    found = trainer("t5")
    queries, _, _ = batch()
    for prompt in (True, False):
        rows = found.generate(queries, return_prompt=prompt, **GREEDY, **NO_END)
        assert [(int(row[0]), len(row)) for row in rows] == [(tiny.PAD, 6)] * 4


def test_generation_drops_nothing_and_restores_the_mode():
    model = tiny.causal(dropout=0.5, head_dropout=0.5).train()
    model.pretrained_model.transformer.h[1].eval()
    modes = [part.training for part in model.modules()]
    found = tiny.trainer(model)
    query = batch()[0][0]
    texts = {tuple(found.generate(query, **GREEDY)[0].tolist()) for _ in range(5)}
    assert len(texts) == 1
    assert [part.training for part in model.modules()] == modes
    assert len({*modes}) == 2


OFF_POLICY = [
    ({"do_sample": False}, "do_sample = False"),
    ({"do_sample": True, "top_k": 5}, "top_k = 5"),
    ({"do_sample": True, "top_k": 0, "top_p": 0.9}, "top_p = 0.9"),
    ({"do_sample": True, "top_k": 0, "temperature": 0.7}, "temperature = 0.7"),
]


@pytest.mark.parametrize("kind", ["gpt2", "x"])
@pytest.mark.parametrize("options, phrase", OFF_POLICY)
@pytest.mark.filterwarnings("default:responses are sampled")
def test_off_policy_samples_are_warned_of_once(kind, options, phrase):
    found = trainer(kind)
    query = batch()[0][0]
    with pytest.warns(UserWarning, match=f"responses are sampled with {phrase}: log-probs are those of the whole") as w:
        found.generate(query, max_new_tokens=2, **options)
    assert len(w) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.generate(query, max_new_tokens=2, **options)
    assert found.sampling == {"max_new_tokens": 2} | options


@pytest.mark.filterwarnings("default:responses are sampled")
def test_the_off_policy_warning_points_to_the_caller():
    found, query = tiny.trainer(), batch()[0][0]
    with pytest.warns(UserWarning, match="responses are sampled") as seen:
        found.generate(query, **GREEDY)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("kind", ["gpt2", "x"])
def test_on_policy_samples_are_not_warned_of(kind):
    """At the temperature of the log-probs, all tokens allowed."""
    found = trainer(kind, logit_temperature=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.generate(batch()[0], do_sample=True, top_k=0, top_p=1.0, temperature=0.7, max_new_tokens=2)


# Forward passes


def plain(model, query, response, temperature=1.0):
    """Log-probs and values of one response's tokens, from the bare network, without padding; one token at a time."""
    base, head = model.pretrained_model, model.v_head.summary
    with torch.no_grad():
        if model.is_encoder_decoder:
            out = base(input_ids=query[None], decoder_input_ids=response[None], output_hidden_states=True)
            logits, hidden, tokens, first = out.logits[0], out.decoder_hidden_states[-1][0], response, 1
        else:
            tokens, first = torch.cat([query, response]), len(query)
            if isinstance(model, XTransformersWithValueHead):
                logits, hidden = (x[0] for x in base(tokens[None], return_logits_and_embeddings=True))
            else:
                out = base(input_ids=tokens[None], output_hidden_states=True)
                logits, hidden = out.logits[0], out.hidden_states[-1][0]
        logprobs = [logits[t - 1].div(temperature).log_softmax(-1)[tokens[t]] for t in range(first, len(tokens))]
        values = [head(hidden[t - 1])[0] for t in range(first, len(tokens))]
    return torch.stack(logprobs), torch.stack(values)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_values_are_those_of_each_sequence_alone(kind, side, temperature):
    found = trainer(kind, side=side, logit_temperature=temperature)
    queries, responses, _ = batch(kind)
    inputs = found.prepare_model_inputs(queries, responses)
    logprobs, none, values, mask = found.batched_forward_pass(found.model, queries, responses, inputs)
    assert none is None
    generated = [len(response) - (kind == "t5") for response in responses]
    assert mask.sum(-1).tolist() == generated
    for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
        wanted = plain(found.model, query, response, temperature)
        inside = mask[row].bool()
        torch.testing.assert_close(logprobs[row][inside], wanted[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[row][inside], wanted[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_be_the_end_token(kind, side):
    """Lengths tell what is padding: a response's own end token is trained, whatever fills the rows."""
    queries, responses, scores = batch(kind)
    responses = [torch.cat([response, tensor([tiny.END])]) for response in responses]
    found = []
    for pad in ("<pad>", "</s>"):
        each = trainer(kind, side=side)
        each.tokenizer.pad_token = pad
        found.append(each.step(queries, responses, scores))
    for name in ("objective/kl", "ppo/loss/total", "ppo/val/vpred", "objective/entropy"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4, abs=1e-5), name
    tokens = sum(len(response) - (kind == "t5") for response in responses)
    assert len(found[1]["ppo/policy/ratio"]) == 2 * tokens


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind, side):
    queries, responses, _ = batch(kind)
    masks = [torch.ones_like(response) for response in responses]
    masks[2][1] = 0
    passes = []
    for size in (1, 4):
        found = trainer(kind, side=side, mini_batch_size=size)
        inputs = found.prepare_model_inputs(queries, responses)
        passes.append(found.batched_forward_pass(found.model, queries, responses, inputs, True, masks))
    (logprobs, logits, values, mask), others = passes
    width = inputs["decoder_input_ids" if kind == "t5" else "input_ids"].shape[1] - 1
    assert logprobs.shape == values.shape == mask.shape == (4, width)
    assert logits.shape == (4, width, tiny.VOCABULARY)
    assert torch.equal(mask, others[3])
    inside = mask.bool()
    for one, four in zip((logprobs, logits, values), others, strict=False):
        torch.testing.assert_close(one[inside], four[inside], rtol=0, atol=1e-5)
    labels = inputs["decoder_input_ids" if kind == "t5" else "input_ids"][:, 1:]
    again = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(logprobs[inside], again[inside], rtol=0, atol=1e-5)


# A step

NAMES = {
    "objective": "kl kl_dist logprobs ref_logprobs kl_coef entropy",
    "ppo": "mean_non_score_reward mean_scores std_scores learning_rate",
    "tokens": "queries_len_mean queries_len_std queries_dist responses_len_mean responses_len_std responses_dist",
    "ppo/loss": "policy value total",
    "ppo/policy": "entropy approxkl policykl clipfrac advantages advantages_mean ratio",
    "ppo/returns": "mean var",
    "ppo/val": "vpred error clipfrac mean var var_explained",
    "time/ppo": "forward_pass compute_rewards compute_advantages optimize_step calc_stats total",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_tells(kind):
    """TRL's forty names and the plain log-ratio, which is the KL itself where that is the estimator."""
    found = trainer(kind)
    queries, responses, scores = batch(kind)
    stats = found.step(queries, responses, scores)
    wanted = {f"{group}/{name}" for group, names in NAMES.items() for name in names.split()}
    assert len(wanted) == 40
    assert {*stats} == wanted | {"objective/kl_k1"}
    assert stats["objective/kl_k1"] == pytest.approx(stats["objective/kl"], rel=1e-6)
    assert all(np.isfinite(np.asarray(value)).all() for value in stats.values())
    own, other = (
        [plain(policy(kind, seed), q, r)[0] for q, r in zip(queries, responses, strict=True)] for seed in (0, 1)
    )
    kls = [float((a - b).sum()) for a, b in zip(own, other, strict=True)]
    assert stats["objective/kl_dist"] == pytest.approx(kls, rel=1e-3, abs=1e-4)
    assert stats["objective/kl"] == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-4)
    assert stats["objective/entropy"] == pytest.approx(np.mean([-float(a.sum()) for a in own]), rel=1e-4)
    assert stats["ppo/mean_scores"] == pytest.approx(float(torch.stack(scores).mean()), rel=1e-5)
    assert stats["ppo/std_scores"] == pytest.approx(float(torch.stack(scores).std()), rel=1e-5)
    assert stats["tokens/responses_dist"].tolist() == [len(response) for response in responses]
    assert stats["tokens/queries_len_mean"] == np.mean([len(query) for query in queries])
    tokens = sum(len(a) for a in own)
    assert len(stats["ppo/policy/ratio"]) == 2 * tokens
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * sum(kls) / tokens, rel=1e-3, abs=1e-5)
    times = [value for name, value in stats.items() if name.startswith("time/")]
    assert min(times) > 0
    assert stats["time/ppo/total"] >= sum(times) - stats["time/ppo/total"]


@pytest.mark.parametrize("kind", ["abs", "mse", "full"])
def test_the_plain_log_ratio_is_told_beside_every_estimator(kind):
    data = batch()
    found, other = (tiny.trainer(kl_penalty=name).step(*data) for name in (kind, "kl"))
    assert found["objective/kl_k1"] == pytest.approx(other["objective/kl"], rel=1e-6)
    assert found["objective/kl"] != pytest.approx(found["objective/kl_k1"], rel=1e-3)
    assert found["objective/kl"] > 0  # all three are no smaller than 0 token by token


def replaced(items, at, item):
    return [item if i == at else old for i, old in enumerate(items)]


MISUSE = {
    "three queries": (lambda q, r, s, m: (q[:3], r, s, m), "queries has 3 items; config.batch_size is 4"),
    "five responses": (lambda q, r, s, m: (q, r + r[:1], s, m), "responses has 5 items"),
    "two scores": (lambda q, r, s, m: (q, r, s[:2], m), "scores has 2 items"),
    "a tensor": (lambda q, r, s, m: (q, r, torch.stack(s), m), "scores must be a list of tensors, .*not Tensor"),
    "a number": (lambda q, r, s, m: (q, r, replaced(s, 1, 0.5), m), r"scores\[1\] must be a tensor, not float: 0.5"),
    "a matrix": (
        lambda q, r, s, m: (q, r, replaced(s, 2, torch.ones(1, 1)), m),
        r"scores\[2\] has shape \(1, 1\): a score is one number",
    ),
    "two numbers": (lambda q, r, s, m: (q, r, replaced(s, 0, torch.ones(2)), m), r"scores\[0\] has shape \(2,\)"),
    "no number": (lambda q, r, s, m: (q, r, replaced(s, 3, tensor(math.nan)), m), r"scores\[3\] = nan"),
    "a batch": (lambda q, r, s, m: (replaced(q, 1, q[1][None]), r, s, m), r"queries\[1\] has shape \(1, \d\)"),
    "ids": (lambda q, r, s, m: (q, replaced(r, 1, [2, 3]), s, m), r"responses\[1\] must be a tensor, not list"),
    "no query": (lambda q, r, s, m: (replaced(q, 0, q[0][:0]), r, s, m), r"queries\[0\] is empty"),
    "no response": (lambda q, r, s, m: (q, replaced(r, 3, r[3][:0]), s, m), r"responses\[3\] is empty"),
    "a short mask": (
        lambda q, r, s, m: (q, r, s, replaced(m, 1, m[1][:1])),
        r"response_masks\[1\] has 1 entries, its response \d tokens",
    ),
    "an empty mask": (
        lambda q, r, s, m: (q, r, s, replaced(m, 2, 0 * m[2])),
        r"response_masks\[2\] leaves no token of its response",
    ),
    "three masks": (lambda q, r, s, m: (q, r, s, m[:3]), "response_masks has 3 items"),
}


def everything(found):
    """All that a step may change."""
    order = found.updates.order.get_state()
    return {
        "weights": flat(found.model).tolist(),
        "kl": found.kl_ctl.value,
        "moments": found.running.state_dict(),
        "order": (order[1].tolist(), order[2:]),
        "step": found.current_step,
        "optimizer": len(found.optimizer.state_dict()["state"]),
    }


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_before_anything_changes(name):
    found = tiny.trainer(use_score_scaling=True)
    before = everything(found)
    queries, responses, scores = batch()
    change, text = MISUSE[name]
    with pytest.raises(ValueError, match=text):
        found.step(*change(queries, responses, scores, [torch.ones_like(r) for r in responses]))
    assert everything(found) == before


def test_a_sequence_beyond_the_fixed_length_is_refused_before_anything_changes():
    found = tiny.trainer(use_score_scaling=True, pad_for_acceleration=True, pad_max_len=6, pad_max_input_len=5)
    before = everything(found)
    with pytest.raises(ValueError, match="a query with response has 8 tokens, more than the fixed length 6"):
        found.step(*batch())
    assert everything(found) == before


@pytest.mark.parametrize("case", ["no start token", "nothing but it", "a mask of nothing but it"])
def test_misuse_of_an_encoder_decoder_is_refused_before_anything_changes(case):
    found = trainer("t5", use_score_scaling=True)
    before = everything(found)
    queries, responses, scores = batch("t5")
    masks = [torch.ones_like(response) for response in responses]
    if case == "no start token":
        responses[2], masks[2], text = responses[2][1:], masks[2][1:], r"responses\[2\] begins with token \d+, not with"
    elif case == "nothing but it":
        responses[2], masks[2], text = responses[2][:1], masks[2][:1], r"responses\[2\] has no token behind"
    else:
        masks[2][1:], text = 0, r"response_masks\[2\] leaves no token"
    with pytest.raises(ValueError, match=text):
        found.step(queries, responses, scores, masks)
    assert everything(found) == before


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.long])
def test_scores_of_any_kind(shape, dtype):
    queries, responses, _ = batch()
    values = [1, -2, 0, 3]
    found = [tiny.trainer().step(queries, responses, [torch.full(shape, v, dtype=dtype) for v in values])]
    found.append(tiny.trainer().step(queries, responses, [tensor(float(v)) for v in values]))
    same(*found, rtol=0, atol=0)
    assert found[0]["ppo/mean_scores"] == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_trains_against_an_own_reference_copy(kind):
    """The copy is the policy until the first update: KL 0 at first, and not at the second step."""
    model = policy(kind)
    found = tiny.trainer(model, create_reference_model(model))
    before, data = flat(model), batch(kind)
    first = found.step(*data)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["ppo/mean_non_score_reward"] == pytest.approx(0.0, abs=1e-6)
    assert (flat(model) - before).abs().max() > 1e-3
    second = found.step(*data)
    assert abs(second["objective/kl"]) > 1e-3
    assert second["ppo/loss/total"] != first["ppo/loss/total"]
    assert torch.equal(flat(found.ref_model), before)


def test_a_step_raises_what_scores_well():
    """One token is paid and all others cost: after some steps the policy says it more often."""
    model = tiny.causal()
    found = tiny.trainer(model, create_reference_model(model), init_kl_coef=0.01, batch_size=16, mini_batch_size=16)
    torch.manual_seed(0)
    paid = []
    for _ in range(8):
        queries = batch(size=16)[0]
        responses = found.generate(
            queries, batch_size=16, return_prompt=False, max_new_tokens=4, do_sample=True, top_k=0, **NO_END
        )
        scores = [(response == 7).float().mean() for response in responses]
        paid.append(float(torch.stack(scores).mean()))
        found.step(queries, responses, scores)
    assert np.mean(paid[-2:]) > np.mean(paid[:2]) + 0.2


# Losses and updates


def ready(found, shift=0.0):
    """The arguments of one mini-batch, by name; the old log-probs lie `shift` below the new ones."""
    queries, responses, _ = batch()
    inputs = found.prepare_model_inputs(queries, responses)
    logprobs, _, values, mask = found.batched_forward_pass(found.model, queries, responses, inputs)
    generator = torch.Generator().manual_seed(5)
    rewards = torch.randn(logprobs.shape, generator=generator)
    values, advantages, returns = found.compute_advantages(values, rewards, mask)
    found.model.eval()
    logits, _, vpreds = found.model(**inputs)
    labels = inputs["input_ids"][:, 1:, None]
    new = logits[:, :-1].log_softmax(-1).gather(-1, labels)[..., 0]
    noise = 0.3 * torch.randn(logprobs.shape, generator=generator)
    return {
        "old_logprobs": logprobs - shift + noise,
        "values": values + 0.5 * torch.randn(values.shape, generator=generator),
        "logits": logits[:, :-1],
        "vpreds": vpreds[:, :-1],
        "logprobs": new,
        "mask": mask,
        "advantages": advantages,
        "returns": returns,
    }


LOSS = "old_logprobs values logits vpreds logprobs mask advantages returns"
TRAIN = "old_logprobs values logprobs logits vpreds mask advantages returns"


def test_loss_and_train_minibatch_have_orders_of_their_own():
    assert " ".join([*inspect.signature(PPOTrainer.loss).parameters][1:]) == LOSS
    assert " ".join([*inspect.signature(PPOTrainer.train_minibatch).parameters][1:]) == TRAIN


def test_loss_and_train_minibatch_agree():
    """The two losses token by token; and the update is the learning rate times the gradient of their sum."""
    found, by_hand = sgd(cliprange=0.15, vf_coef=0.3), sgd(cliprange=0.15, vf_coef=0.3)
    given = ready(by_hand)
    inside = given["mask"].bool()
    columns = (given[name][inside].tolist() for name in TRAIN.split() if name not in ("logits", "mask"))
    policy_terms, value_terms, clipped = [], [], 0
    for old, value, new, now, gain, wanted in zip(*columns, strict=True):
        ratio = math.exp(new - old)
        free, held = -gain * ratio, -gain * min(max(ratio, 0.85), 1.15)
        policy_terms.append(max(free, held))
        clipped += held > free
        near = min(max(now, value - 0.2), value + 0.2)
        value_terms.append(0.5 * max((now - wanted) ** 2, (near - wanted) ** 2))
    policy_loss, value_loss, stats = by_hand.loss(*(given[name] for name in LOSS.split()))
    assert float(policy_loss.detach()) == pytest.approx(np.mean(policy_terms), rel=1e-4, abs=1e-6)
    assert float(value_loss.detach()) == pytest.approx(0.3 * np.mean(value_terms), rel=1e-4)
    assert 0 < clipped < len(policy_terms)
    assert stats["policy/clipfrac"] == pytest.approx(clipped / len(policy_terms))
    by_hand.optimizer.zero_grad()
    (policy_loss + value_loss).backward()
    by_hand.optimizer.step()
    again = ready(found)
    told = found.train_minibatch(*(again[name] for name in TRAIN.split()))
    assert told["loss/total"] == pytest.approx(float((policy_loss + value_loss).detach()), rel=1e-5)
    for name in {*stats} - {"policy/advantages", "policy/ratio"}:
        assert told[name] == pytest.approx(stats[name], rel=1e-6), name
    torch.testing.assert_close(flat(found.model), flat(by_hand.model), rtol=0, atol=1e-6)
    assert (flat(found.model) - flat(tiny.causal())).abs().max() > 1e-3


@pytest.mark.parametrize("shift, fires", [(5.0, True), (0.5, False)])
def test_the_ratio_guard(shift, fires):
    """e^5 is 148, above the threshold 10: the losses are 0, and neither weights nor momentum move; e^0.5 is 1.6."""
    model = tiny.causal()
    found = tiny.trainer(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.01))
    found.step(*batch())  # so that there is momentum
    given = ready(found, shift)
    losses = found.loss(*(given[name] for name in LOSS.split()))[:2]
    assert [float(loss.detach()) == 0.0 for loss in losses] == [fires, fires]
    before, state = flat(model), copy.deepcopy(found.optimizer.state_dict()["state"])
    calls = counted(found)
    told = found.train_minibatch(*(given[name] for name in TRAIN.split()))
    assert len(calls) == (not fires)
    assert torch.equal(flat(model), before) == fires
    now = found.optimizer.state_dict()["state"]
    assert all(torch.equal(now[k]["exp_avg"], state[k]["exp_avg"]) for k in state) == fires
    assert math.isfinite(told["loss/total"])


@pytest.mark.parametrize("beyond", [[0], [3], [1, 2], [0, 1, 2, 3]])
def test_the_guard_leaves_mini_batches_out_of_a_window(beyond):
    """Of four samples in one update the others are learned from, each token as a part of all tokens of the window."""
    found, by_hand = (sgd(mini_batch_size=1, gradient_accumulation_steps=4, ppo_epochs=1) for _ in range(2))
    given, queries, responses = ready(by_hand), *batch()[:2]
    inputs = found.prepare_model_inputs(queries, responses)
    given["old_logprobs"] = given["logprobs"].detach().clone()
    given["old_logprobs"][beyond] -= 5.0
    calls = counted(found)
    columns = (given[name].detach() for name in ("mask", "old_logprobs", "values", "advantages", "returns"))
    found.updates.run(Batch(inputs, *columns))
    kept = [row for row in range(4) if row not in beyond]
    assert len(calls) == bool(kept)
    if kept:
        part = {name: value[kept] for name, value in given.items()}
        policy_loss, value_loss, _ = by_hand.loss(*(part[name] for name in LOSS.split()))
        by_hand.optimizer.zero_grad()
        ((policy_loss + value_loss) * part["mask"].sum() / given["mask"].sum()).backward()
        by_hand.optimizer.step()
        assert (flat(found.model) - flat(tiny.causal())).abs().max() > 1e-3
    torch.testing.assert_close(flat(found.model), flat(by_hand.model), rtol=0, atol=1e-6)


def test_numbers_that_are_none_change_nothing():
    """A network whose logits are not numbers: the step ends before the first update, and says so."""
    found = tiny.trainer()
    before = everything(found)
    found.model.pretrained_model.lm_head.register_forward_hook(lambda module, given, out: out * math.nan)
    calls = counted(found)
    with pytest.raises(FloatingPointError, match=r"policy, .*not finite, the weights were not changed"):
        found.step(*batch())
    assert calls == []
    after = everything(found)
    assert {name: after[name] for name in before if name != "order"} == {
        name: before[name] for name in before if name != "order"
    }


@pytest.mark.parametrize(
    "mini, accumulation, updates", [(4, 1, 2), (2, 1, 4), (1, 1, 8), (1, 2, 4), (2, 2, 2), (1, 4, 2)]
)
def test_updates_of_a_step(mini, accumulation, updates):
    """Two epochs through four samples; the statistics are those of two epochs of tokens anyway."""
    found = tiny.trainer(mini_batch_size=mini, gradient_accumulation_steps=accumulation)
    calls, data = counted(found), batch()
    stats = found.step(*data)
    assert len(calls) == updates
    assert len(stats["ppo/policy/ratio"]) == 2 * sum(len(response) for response in data[1])


def test_accumulation_in_a_loop_over_the_loader():
    """Two windows of two in each of two epochs, on the last batch of the loader as on the first, with one result."""
    ended = []
    for inside in (True, False):
        found = sgd(mini_batch_size=1, gradient_accumulation_steps=2)
        loader = found.prepare_dataloader(Numbers(8))
        calls, counts = counted(found), []
        for step, _ in enumerate(loader if inside else range(2)):
            found.step(*batch(seed=step))
            counts.append(len(calls))
        assert counts == [4, 8]
        ended.append(flat(found.model))
    assert torch.equal(*ended)


def test_gradients_from_outside_are_not_taken_in():
    found, other = sgd(), sgd()
    for parameter in found.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for each in (found, other):
        each.step(*batch())
    assert torch.equal(flat(found.model), flat(other.model))
    assert all(p.grad is None for p in found.model.parameters())


@pytest.mark.parametrize("norm", [1e-3, 1e6])
def test_a_window_is_clipped_once(norm):
    """By the norm of the whole window's gradient: weights move by rate times limit, or as if there were none."""
    options = {"mini_batch_size": 1, "gradient_accumulation_steps": 4, "ppo_epochs": 1}
    found, free = sgd(max_grad_norm=norm, **options), sgd(**options)
    before = flat(found.model)
    for each in (found, free):
        each.step(*batch())
    moved, freely = flat(found.model) - before, flat(free.model) - before
    if norm > 1:
        assert torch.equal(moved, freely)
        return
    assert float(moved.norm()) == pytest.approx(0.1 * norm, rel=5e-3)  # rounded at the weights' 1e-7
    assert float(freely.norm()) > 0.01
    assert float(moved @ freely / (moved.norm() * freely.norm())) > 0.999


def test_the_learning_rate_is_that_of_the_update():
    """Halved, then divided by three: what a step logs is what it used, and the scheduler moves once a step."""
    model = tiny.causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    found = PPOTrainer(
        tiny.config(mini_batch_size=1), model, tiny.causal(1), tiny.tokenizer(), None, optimizer, None, None, scheduler
    )
    logged = [found.step(*batch(seed=step))["ppo/learning_rate"] for step in range(3)]
    assert logged == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert scheduler.last_epoch == 3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert tiny.trainer(learning_rate=0.02).step(*batch())["ppo/learning_rate"] == 0.02


def test_the_coefficient_moves_once_a_step_by_the_batch():
    """coefficient * (1 + error * 4 / 40), the error of KL over target held in +-0.2; logged is the one in force."""
    found = tiny.trainer(target=1.0, horizon=40.0, init_kl_coef=0.3)
    value = 0.3
    for step in range(3):
        stats = found.step(*batch(seed=step))
        assert stats["objective/kl_coef"] == pytest.approx(value, rel=1e-12)
        value *= 1 + min(max(stats["objective/kl"] / 1.0 - 1, -0.2), 0.2) * 4 / 40
        assert found.kl_ctl.value == pytest.approx(value, rel=1e-6)
    assert value != 0.3


def test_a_fixed_coefficient_stays():
    found = tiny.trainer(adap_kl_ctrl=False, init_kl_coef=0.3, horizon=1.0)
    assert [found.step(*batch(seed=step))["objective/kl_coef"] for step in range(3)] == [0.3] * 3
    assert found.kl_ctl.value == 0.3


def test_scores_are_scaled_before_they_are_clipped():
    """0, 10, 20, 30 have mean 15 and deviation sqrt(500 / 3) = 12.91; clipped at 1 only after that."""
    found = tiny.trainer(use_score_scaling=True, use_score_norm=True, score_clip=1.0)
    shaped = found.shape_scores(tensor([0.0, 10.0, 20.0, 30.0])).tolist()
    assert shaped == pytest.approx([-1.0, -5 / 12.9099, 5 / 12.9099, 1.0], abs=1e-5)
    # Of eight scores, four of them 0: mean 7.5, squares 1400 - 8 * 56.25 = 950, deviation sqrt(950 / 7) = 11.650.
    assert found.shape_scores(torch.zeros(4)).tolist() == pytest.approx([-7.5 / 11.6496] * 4, abs=1e-5)
    plain_scaling = tiny.trainer(use_score_scaling=True)
    assert plain_scaling.shape_scores(tensor([0.0, 30.0])).tolist() == pytest.approx([0.0, 2**0.5], abs=1e-5)
    clipped = tiny.trainer(score_clip=2.5)
    assert clipped.shape_scores(tensor([-4.0, 1.0, 3.0])).tolist() == [-2.5, 1.0, 2.5]


def test_shaped_scores_are_what_is_learned_from():
    queries, responses, _ = batch()
    raw = [tensor(v) for v in (-9.0, 0.5, 0.25, 9.0)]
    found = [tiny.trainer(score_clip=1.0).step(queries, responses, raw)]
    found.append(tiny.trainer().step(queries, responses, [score.clamp(-1, 1) for score in raw]))
    same(*found, rtol=0, atol=0)
    assert found[0]["ppo/mean_scores"] == pytest.approx(0.1875)


@pytest.mark.parametrize("over", ["epoch", "last"])
def test_early_stopping(over):
    """With one mini-batch an epoch the first sees ratios of 1; on this batch the second goes too far."""
    options = {"mini_batch_size": 4, "ppo_epochs": 4, "early_stopping_over": over}
    free = tiny.trainer(target_kl=1e-6, **options)
    calls = counted(free)
    free.step(*batch(seed=7))
    assert len(calls) == 4
    stopped = tiny.trainer(target_kl=1e-6, early_stopping=True, **options)
    calls = counted(stopped)
    stats = stopped.step(*batch(seed=7))
    assert len(calls) == 2
    tokens = len(stats["ppo/policy/ratio"]) // 2
    assert stats["ppo/policy/ratio"][:tokens] == pytest.approx([1.0] * tokens, abs=1e-5)
    # The mean over the two mini-batches, the first of which has none.
    kl = 2 * stats["ppo/policy/policykl"]
    assert kl == pytest.approx(-np.log(stats["ppo/policy/ratio"][tokens:]).mean(), rel=1e-3, abs=1e-5)
    assert kl > 1e-3
    # One and a half times the target; the third epoch is about twice as far as the second.
    for limit, updates in ((0.9 * kl / 1.5, 2), (1.1 * kl / 1.5, 3), (1e3, 4)):
        found = tiny.trainer(target_kl=limit, early_stopping=True, **options)
        calls = counted(found)
        found.step(*batch(seed=7))
        assert len(calls) == updates


def test_fixed_lengths():
    """Every pass is as wide as the configuration says, and gives what passes of any width give."""
    found, free = sgd(pad_for_acceleration=True, pad_max_len=20, pad_max_input_len=9), sgd()
    shapes = []
    found.model.pretrained_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    queries, responses, scores = batch()
    stats = free.step(queries, responses, scores)
    padded = found.step(queries, responses, scores)
    assert {*shapes} == {(2, 20)}
    for name in ("objective/logprobs", "objective/ref_logprobs"):
        assert padded.pop(name).shape == (4, 19)
        stats.pop(name)
    same(padded, stats, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat(found.model), flat(free.model), rtol=0, atol=1e-5)
    del shapes[:]
    answers = [[row.tolist() for row in each.generate(queries, **GREEDY)] for each in (found, free)]
    assert shapes[0] == (4, 9)
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="a query has 10 tokens, more than the fixed length 9"):
        found.generate(torch.full((10,), 3), **GREEDY)


def test_dropout_is_off_in_a_step():
    """A policy with and without dropout makes the same step, in whatever mode it is; the mode stays."""
    plain_model, dropping = tiny.causal(), tiny.causal(dropout=0.5, head_dropout=0.5).train()
    dropping.load_state_dict(plain_model.state_dict())
    found = [tiny.trainer(model, tiny.causal(1)) for model in (dropping, plain_model)]
    same(*(each.step(*batch()) for each in found), rtol=1e-5, atol=1e-6)
    assert torch.equal(flat(dropping), flat(plain_model))
    assert all(part.training for part in dropping.modules())
    assert not any(part.training for part in plain_model.modules())


def test_holes_in_a_response_are_not_learned_from():
    """What a tool wrote at the end of a response may be anything: other tokens there make no difference."""
    queries, responses, scores = batch(equal=True)
    masks = [torch.ones_like(response) for response in responses]
    for mask in masks:
        mask[-2:] = 0
    others = [torch.cat([response[:-2], response[-2:].flip(0) % 5 + 2]) for response in responses]
    found = [tiny.trainer().step(queries, texts, scores, masks) for texts in (responses, others)]
    for name in ("ppo/loss/total", "objective/kl", "ppo/returns/mean", "ppo/mean_non_score_reward"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5), name
    assert len(found[0]["ppo/policy/ratio"]) == 2 * 4 * 4  # of six tokens four count


# What is told


def tracked(folder, **changes):
    return tiny.trainer(log_with="tensorboard", project_kwargs={"logging_dir": str(folder)}, **changes)


def test_statistics_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = tracked(tmp_path, tracker_project_name="tried")
    data, texts = batch(), {"query": ["a", "b", "c", "d"], "response": ["e", "f", "g", "h"]}
    totals = []
    for _ in range(2):
        stats = found.step(*data)
        totals.append(stats["ppo/loss/total"])
        assert found.log_stats(stats, texts, [tensor(v) for v in (1.0, 2.0, 3.0, 6.0)]) is None
    found.accelerator.end_training()
    files = [*tmp_path.rglob("*tfevents*")]
    assert files
    assert all("tried" in str(file) for file in files)
    events = EventAccumulator(str(tmp_path / "tried"))
    events.Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert [e.value for e in scalars["env/reward_mean"]] == [3.0, 3.0]
    assert scalars["env/reward_std"][0].value == pytest.approx((14 / 3) ** 0.5)
    assert [e.step for e in scalars["ppo/loss/total"]] == [1, 2]
    assert [e.value for e in scalars["ppo/loss/total"]] == pytest.approx(totals, rel=1e-5)
    assert {"objective/kl", "ppo/learning_rate", "time/ppo/total"} <= {*scalars}


def test_a_column_that_is_missing_is_named(tmp_path):
    found = tracked(tmp_path)
    texts, rewards = {"query": ["a"] * 4, "answer": ["b"] * 4}, [tensor(1.0)] * 4
    with pytest.raises(ValueError, match="no column response to log, it has query, answer"):
        found.log_stats({}, texts, rewards)
    found.log_stats({}, texts, rewards, columns_to_log=["query", "answer"])
    found.accelerator.end_training()


def test_without_a_tracker_nothing_is_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tiny.trainer()
    assert found.log_stats(found.step(*batch()), {}, []) is None
    assert not [*tmp_path.iterdir()]


def test_a_model_card_needs_no_hub(tmp_path):
    found = tiny.trainer(init_kl_coef=0.125)
    found.generate(batch()[0][0], **GREEDY)
    found.step(*batch())
    found.create_model_card(tmp_path / "deep" / "folder", "Some name")
    text = (tmp_path / "deep" / "folder" / "README.md").read_text()
    assert "# Some name\n" in text
    assert "1 steps of\n4 samples" in text
    assert "| init_kl_coef | 0.125 |" in text
    assert "| sampling: do_sample | False |" in text
    assert "# PPO model" in (found.create_model_card(tmp_path) or (tmp_path / "README.md").read_text())


# What is kept


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_saved_policy_comes_back(kind, tmp_path):
    from transformers import AutoTokenizer

    found = trainer(kind)
    data = batch(kind)
    found.step(*data)
    found.save_pretrained(tmp_path / "saved")
    loader = AutoModelForSeq2SeqLMWithValueHead if kind == "t5" else AutoModelForCausalLMWithValueHead
    again = loader.from_pretrained(tmp_path / "saved").eval()
    inputs = found.prepare_model_inputs(*data[:2])
    with torch.no_grad():
        for ours, theirs in zip(found.model.eval()(**inputs), again(**inputs), strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode("w5 w9") == [5, 9]
    assert "ray-align" in (tmp_path / "saved" / "README.md").read_text()


def test_a_saved_network_of_x_transformers_comes_back(tmp_path):
    description = x_config() | {"num_tokens": tiny.VOCABULARY}
    network = tiny.sharpened(XTransformersModel.random(description, seed=0).network)
    model = XTransformersWithValueHead(network, description=description)
    found = tiny.trainer(model, tiny.x_causal(1))
    found.step(*batch())
    found.save_pretrained(tmp_path)
    again = XTransformersWithValueHead.from_pretrained(tmp_path)
    for ours, theirs in zip(model(batch()[0][0][None]), again(batch()[0][0][None]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def pushed(found):
    """Try to push: the error; what is in memory stays as it was."""
    before, names = everything(found), [*found.model.state_dict()]
    with pytest.raises(
        ConnectionError, match=r"'somebody/something' could not be pushed.*Nothing has changed here"
    ) as seen:
        found.push_to_hub("somebody/something", token="hf_none")
    assert everything(found) == before
    assert [*found.model.state_dict()] == names
    assert not hasattr(found.model.pretrained_model, "v_head")
    return seen.value


def test_pushing_offline_changes_nothing(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1" in str(pushed(tiny.trainer()))


def test_pushing_without_a_network_changes_nothing(monkeypatch):
    """Nobody listens on this port of the own machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    pushed(tiny.trainer())


def resumable(kind, seed):
    """With everything that a run keeps beside its weights: momentum, moments, rate, coefficient, order."""
    model = policy(kind, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    config = tiny.config(use_score_scaling=True, use_score_norm=True, target=0.5, horizon=30.0, mini_batch_size=1)
    return PPOTrainer(config, model, policy(kind, 1), tiny.tokenizer(), optimizer=optimizer, lr_scheduler=scheduler)


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_is_as_if_there_had_been_no_stop(kind, tmp_path):
    whole, first = resumable(kind, 0), resumable(kind, 0)
    wanted = [whole.step(*batch(kind, seed=step)) for step in range(3)]
    for step in range(2):
        first.step(*batch(kind, seed=step))
    first.save_state(tmp_path)
    second = resumable(kind, 2)  # other weights
    second.step(*batch(kind, seed=5))  # and another history
    second.load_state(tmp_path)
    assert (second.current_step, second.running.count) == (2, 8)
    stats = second.step(*batch(kind, seed=2))
    same(stats, wanted[2], rtol=0, atol=0)
    assert torch.equal(flat(second.model), flat(whole.model))
    mine, theirs = everything(second), everything(whole)
    assert mine == theirs
    assert second.lr_scheduler.state_dict()["last_epoch"] == 3
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_random_numbers_go_on_as_well(tmp_path):
    found, query = tiny.trainer(), batch()[0][0]
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20}
    found.generate(query, **options)
    found.save_state(tmp_path)
    wanted = found.generate(query, **options)
    again = tiny.trainer()
    again.load_state(tmp_path)
    assert torch.equal(again.generate(query, **options), wanted)


# Adapters


def adapted():
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    model = AutoModelForCausalLMWithValueHead(
        peft.get_peft_model(tiny.gpt2(), peft.LoraConfig(**options)), summary_dropout_prob=0.0
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)  # an adapter that is no longer the base model
    return model


def test_an_adapted_policy_is_compared_with_its_base():
    """Without a reference model: adapters off, the log-probs are the base model's, and only adapters and head learn."""
    model = adapted()
    found = tiny.trainer(model)
    assert found.ref_model is None
    assert found.config.is_peft_model
    queries, responses, scores = batch()
    before = weights(model)
    stats = found.step(queries, responses, scores)
    base = tiny.causal()
    inside = torch.zeros(stats["objective/ref_logprobs"].shape, dtype=torch.bool)
    for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
        inside[row, len(query) - 1 : len(query) - 1 + len(response)] = True
        wanted = plain(base, query, response)[0].numpy()
        assert stats["objective/ref_logprobs"][row][inside[row].numpy()] == pytest.approx(wanted, abs=1e-5)
        own = stats["objective/logprobs"][row][inside[row].numpy()]
        assert np.abs(own - wanted).max() > 1e-2
    moved = changed(model, before)
    assert moved
    assert all("lora_" in name or "v_head" in name for name in moved)
    assert any("lora_A" in name for name in moved)
    assert any("v_head" in name for name in moved)
    # And after the step the adapters are on again.
    with torch.no_grad():
        on = model(queries[0][None])[0]
        with model.pretrained_model.disable_adapter():
            off = model(queries[0][None])[0]
    assert (on - off).abs().max() > 1e-2


def test_an_adapter_goes_on_after_a_stop(tmp_path):
    whole, first, second = (tiny.trainer(adapted()) for _ in range(3))
    wanted = [whole.step(*batch(seed=step)) for step in range(2)][1]
    first.step(*batch(seed=0))
    first.save_state(tmp_path / "state")
    second.load_state(tmp_path / "state")
    same(second.step(*batch(seed=1)), wanted, rtol=0, atol=0)
    second.save_pretrained(tmp_path / "saved")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "saved").iterdir()
    }
