"""PPOTrainer's generation and forward passes, for every kind of model."""

import warnings

import pytest
import torch
from torch import tensor

from ppo import (
    LengthSampler,
)
from tests.ppo import tiny
from tests.ppo.trials import GREEDY, KINDS, NO_END, QUIET, batch, plain, trainer

pytestmark = QUIET


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
        (torch.ones(2, 3, dtype=torch.long), r"query 0 must be a tensor of shape \(length,\), not a tensor \(2, 3\)"),
        ([tensor([2]), torch.ones(1, 2, dtype=torch.long)], r"query 1 .* not a tensor \(1, 2\)"),
        ([tensor([], dtype=torch.long)], r"query 0 is empty"),
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"length_sampler": 5}, "length_sampler = 5 must be callable"),
        ({"num_return_sequences": 2}, "num_return_sequences: give each query as often"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate: only the responses"),
    ],
)
def test_what_generate_cannot_do(options, text):
    with pytest.raises(ValueError, match=text):
        trainer().generate([tensor([2, 3])], max_new_tokens=2, **options)


def test_keywords_that_ask_for_nothing_are_no_trouble_to_any_model():
    """What people who come from TRL have always given; at x-transformers it is left out."""
    usual = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "num_beams": 1, "max_new_tokens": 3}
    for kind in ("gpt2", "x"):
        assert len(trainer(kind).generate([tensor([2, 3])], return_prompt=False, **NO_END, **usual)[0]) == 3
