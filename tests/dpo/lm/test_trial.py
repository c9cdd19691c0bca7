"""The trial of a model's ways against its own forward pass of each sequence alone."""

import re

import pytest
import torch

from dpo.lm import hf, wide
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel
from dpo.lm.model_config import ModelError
from dpo.lm.trial import (
    HEAD_APART,
    OWN,
    SHARED,
    ask,
    fastest_way,
    tokens_beyond,
    trial_sequences,
    truth,
    try_ways,
)
from dpo.lm.wide import in_float32
from dpo.lm.x_transformers import XTransformersModel
from tests.dpo.tiny import LLAMA, VOCABULARY, sequence, sharpen, tiny_model, x_config

CPU = torch.device("cpu")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 4.0, 16.0, 64.0],
}
LONGROPE |= {"original_max_position_embeddings": 12}
PHI3 = {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "eos_token_id": 2}
PHI3 |= {"rope_parameters": LONGROPE, "original_max_position_embeddings": 12}
PHIMOE = {**PHI3, "model_type": "phimoe", "num_local_experts": 2}
PHIMOE |= {"rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.5}}
DYNAMIC = {**LLAMA, "max_position_embeddings": 12}
DYNAMIC |= {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}
BERT = {"model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 2, "intermediate_size": 24}
GRIFFIN = {**LLAMA, "model_type": "recurrent_gemma", "num_hidden_layers": 3, "lru_width": 16}
REMBERT = {**BERT, "model_type": "rembert", "is_decoder": True, "input_embedding_size": 16, "output_embedding_size": 24}


def build(config, size=0.3, dtype=torch.float32):
    return LogprobModel(sharpen(HuggingFaceModel.random(config, 0), 0, size).to(dtype).eval())


def tried(model, may_share=True):
    return try_ways(model, model.model.network.config.to_dict(), VOCABULARY, may_share, CPU)


def chosen(model, may_share=True):
    return fastest_way(model, tried(model, may_share), VOCABULARY, may_share, CPU)


# Models that no way is right for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_model_that_looks_ahead_is_refused(kind, dtype):
    model = build({**BERT, "model_type": kind, "pad_token_id": 0}, dtype=dtype)
    with pytest.raises(ModelError, match="lets a token see those behind it"):
        tried(model)


def test_a_model_whose_batches_change_a_sequence_is_refused():
    model = build(LLAMA)
    model.model.network.model.layers[0].register_forward_hook(lambda _, __, out: out + out.mean(0, keepdim=True))
    with pytest.raises(ModelError, match=r"cannot be trained: .* alone; in a trial its log-probs changed by \S+ nats"):
        tried(model)


def test_a_model_that_cannot_compute_is_refused_with_what_it_said():
    model = build(LLAMA)
    model.model.network.model.layers[0].mlp.up_proj = torch.nn.Linear(7, 24)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot compute .* in float32 here: RuntimeError: .*shape"):
        tried(model)


def test_damaged_weights_are_refused():
    model = build(LLAMA)
    with torch.no_grad():
        model.model.network.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"are not finite numbers\. Its weights are damaged"):
        tried(model)


# Ways that are not taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_between_body_and_head(dtype):
    """RemBERT's logits are those of a layer of their own, so its head cannot be asked apart."""
    model = build(REMBERT, dtype=dtype)
    assert "a trial ended in RuntimeError: " in tried(model, may_share=False).head_apart
    assert chosen(model, may_share=False).way == OWN


CAPPED = {
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 4.0},
    "cohere": {"pad_token_id": 0, "logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "recurrent_gemma": {**GRIFFIN, "attention_window_size": 8},  # its cap has a name of its own
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CAPPED)
def test_what_changes_logits_behind_the_head_is_found_by_number(kind, dtype, monkeypatch):
    monkeypatch.setattr(hf, "BEHIND_THE_HEAD", ())
    model = build({**LLAMA, "model_type": kind, **CAPPED[kind]}, dtype=dtype)
    assert "in a trial its log-probs changed by " in tried(model, may_share=False).head_apart
    assert chosen(model, may_share=False).way == OWN


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "mixtral", "nemotron", "doge", "gemma2", "mistral"])
def test_bfloat16_is_judged_as_float32_is(kind):
    """Also where sharing were tried by mistake, which the attention or the numbers then refuse."""
    more = {"head_dim": 8} if kind == "gemma2" else {}
    models = [build({**LLAMA, "model_type": kind, **more}, 0.1, dtype) for dtype in (torch.float32, torch.bfloat16)]
    wide_, narrow = map(tried, models)
    assert [reason is None for reason in narrow] == [reason is None for reason in wide_]
    assert chosen(models[1]).way == chosen(models[0]).way


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**LLAMA, "model_type": "nemotron"}, "a trial ended in AttentionError: Nemotron"),
        ({**LLAMA, "model_type": "doge"}, "a trial ended in AttentionError: DogeAttention asks its attention for"),
        ({**LLAMA, "model_type": "granite", "logits_scaling": 4.0}, "something changes the logits behind the head"),
    ],
)
def test_the_reason_why_prompts_repeat(config, why):
    found = chosen(build(config))
    assert not found.way.shared and found.unshared.startswith(why)


def test_the_numbers_are_a_reason_too():
    model = LogprobModel(sharpen(XTransformersModel.random(x_config("rotary", {"shift_tokens": 1}), 0), 0).eval())
    found = fastest_way(model, try_ways(model, model.model.config, VOCABULARY, True, CPU), VOCABULARY, True, CPU)
    assert found.way == HEAD_APART and re.match(r"in a trial its log-probs changed by \S+ nats$", found.unshared)


# Rotary positions that look at the length


@pytest.mark.parametrize("config", [PHI3, PHIMOE, DYNAMIC], ids=["phi3", "phimoe", "dynamic"])
def test_a_sequence_is_computed_alike_alone_and_beside_longer_ones(config):
    model = build(config)
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, VOCABULARY, (n,), generator=draw).tolist() for n in (9, 30, 11, 12, 13, 21, 30)]
    sequences = [sequence(ids[:3], ids[3:]) for ids in drawn]
    expected = torch.cat([truth(model, [each], CPU) for each in sequences])
    for order in (sequences, sequences[::-1]):
        for way in (OWN, HEAD_APART):
            found = ask(model, way, order, CPU).split([len(each.completion_ids) for each in order])
            found = torch.cat(found if order is sequences else found[::-1])
            assert (found - expected).abs().max() < 2e-5
    ids = torch.tensor([[*each, *[0] * (30 - len(each))] for each in drawn])
    together = model.model.network(input_ids=ids, use_cache=False).logits[0, :9]
    alone = model.model.network(input_ids=ids[:1, :9], use_cache=False).logits[0]
    assert (together - alone).abs().max() > 1e-2  # the library's own batches are not


@pytest.mark.parametrize("config", [PHI3, DYNAMIC], ids=["phi3", "dynamic"])
def test_answers_do_not_depend_on_the_prompts_beside_them(config):
    model = build(config).model
    prompts = [[3, 4, 5], list(range(2, 22)), [7, 8, 9, 10, 11, 12, 13, 14, 15]]
    alone = [model.generate([prompt], 6, eos_id=VOCABULARY, pad_id=0)[0] for prompt in prompts]
    assert model.generate(prompts, 6, eos_id=VOCABULARY, pad_id=0) == alone


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LLAMA, None),
        (PHI3, 20),
        ({**PHI3, "original_max_position_embeddings": 4096, "rope_parameters": {}}, None),  # too long to be tried
        (DYNAMIC, 20),
        ({**LLAMA, "sliding_window": 8}, 16),
        ({**LLAMA, "sliding_window": 60}, 64),  # it has no more positions
        ({"text_config": {**LLAMA, "attention_chunk_size": 32}}, 40),
    ],
)
def test_the_longest_sequence_that_is_tried(config, tokens):
    assert tokens_beyond(config) == tokens
    longest = max(len(s.prompt_ids) + len(s.completion_ids) for s in trial_sequences(VOCABULARY, tokens))
    assert longest == max(16, tokens or 0)


# In float32


@pytest.mark.parametrize("whole", [10**9, 0], ids=["at once", "layer by layer"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "x-absolute-tied", "x-rotary"])
def test_weights_are_wide_inside_the_block_and_as_before_behind_it(name, whole, monkeypatch):
    monkeypatch.setattr(wide, "WHOLE", whole)
    model = LogprobModel(tiny_model(name).bfloat16().eval())
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    exact = LogprobModel(tiny_model(name).bfloat16().float().eval())
    sequences = trial_sequences(VOCABULARY)
    with torch.no_grad(), in_float32(model.model.network):
        for way in (OWN, HEAD_APART, SHARED):
            assert (ask(model, way, sequences, CPU) - ask(exact, way, sequences, CPU)).abs().max() < 1e-5
    after = {name: (id(tensor), tensor) for name, tensor in model.named_parameters()}
    assert all(after[name][0] == before[name][0] and torch.equal(after[name][1], before[name][1]) for name in before)
    assert {tensor.dtype for _, tensor in after.values()} == {torch.bfloat16}


def test_weights_are_as_before_also_behind_an_error(monkeypatch):
    monkeypatch.setattr(wide, "WHOLE", 0)
    model = LogprobModel(tiny_model("llama").bfloat16().eval())
    model.model.network.model.layers[1].mlp.up_proj.in_features = 7
    model.model.network.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), in_float32(model.model.network):
        ask(model, OWN, trial_sequences(VOCABULARY), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
