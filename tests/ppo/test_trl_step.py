"""Whole steps, forward passes and generation against numbers that old TRL gave (see fixtures/trainer)."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from ppo import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from tests.ppo import tiny

FOLDER = Path(__file__).parent / "fixtures" / "trainer"
STEPS = sorted(path.stem.removeprefix("step_") for path in FOLDER.glob("step_*.json"))


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def model(described, file, seq2seq=False):
    """A wrapper with the weights of a fixture."""
    described = {k: v for k, v in described.items() if k not in ("model_type", "transformers_version")}
    base = T5ForConditionalGeneration(T5Config(**described)) if seq2seq else GPT2LMHeadModel(GPT2Config(**described))
    kind = AutoModelForSeq2SeqLMWithValueHead if seq2seq else AutoModelForCausalLMWithValueHead
    wrapped = kind(base, summary_dropout_prob=0.0)
    weights = load_file(FOLDER / Path(file).name)
    head = {k.removeprefix("v_head."): v for k, v in weights.items() if k.startswith("v_head.")}
    wrapped.v_head.load_state_dict(head)
    missing, unexpected = base.load_state_dict({k: v for k, v in weights.items() if "v_head" not in k}, strict=False)
    assert not unexpected
    assert all("lm_head" in name or "embed_tokens" in name for name in missing)
    base.tie_weights()
    return wrapped


def tokenizer(side="right"):
    found = tiny.tokenizer(side)
    assert (found.pad_token_id, found.eos_token_id) == (0, 1)
    return found


def trainer(case, side="right"):
    policy, reference = (model(case["model_config"], case["start"][name]) for name in ("policy", "reference"))
    wanted = {k: v for k, v in case["config"].items() if k in {key.name for key in fields(PPOConfig)}}
    optimizer = None
    if case["optimizer"]["name"] == "SGD":
        optimizer = torch.optim.SGD(policy.parameters(), lr=case["optimizer"]["lr"])
    return PPOTrainer(PPOConfig(**wanted), policy, reference, tokenizer(side), optimizer=optimizer)


def test_there_are_steps_of_every_kind():
    assert {"kl", "abs", "mse", "full", "fixed", "score_clip", "accumulation", "scaling", "sgd"} <= {*STEPS}


def listed(items):
    return [torch.tensor(item) for item in items]


@pytest.mark.parametrize("name", STEPS)
def test_two_steps(name):
    case = load(f"step_{name}")
    ours = trainer(case)
    drawn = []
    draw = ours.updates.order.permutation

    class Watched:
        def permutation(self, size):
            drawn.append(draw(size))
            return drawn[-1]

    ours.updates.order = Watched()
    for step, expected in enumerate(case["stats"]):
        masks = listed(case["response_masks"][step]) if "response_masks" in case else None
        found = ours.step(
            listed(case["queries"][step]), listed(case["responses"][step]), listed(case["scores"][step]), masks
        )
        compare(found, expected)
        assert ours.kl_ctl.value == pytest.approx(case["kl_coef"][step], rel=1e-6)
    assert [p.tolist() for p in drawn] == case["permutations"]
    compare_weights(ours, case["weights"])


# Theirs also hold what stands at prompts and padding, and are therefore not the same entries.
UNMASKED = {"ppo/policy/advantages", "ppo/policy/ratio"}


def compare(found, expected):
    assert {*expected} <= {*found}
    for key, value in expected.items():
        if key in UNMASKED:
            assert len(found[key]) < len(value)
            continue
        value = np.array(value)
        if value.ndim == 2:  # theirs hold anything at padding, ours 0
            lengths = np.array(expected["tokens/queries_dist"]) + np.array(expected["tokens/responses_dist"]) - 1
            value = np.where(np.arange(value.shape[1]) < lengths[:, None], value, found[key])
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6, err_msg=key)


def compare_weights(ours, weights, key_bias_noise=1e-2):
    """Compare with the weights of an oracle, or with their absolute sums.

    Args:
        key_bias_noise: relative, for the sums that hold key biases. Their gradients are 0 but for rounding, of which
            Adam makes whole steps, so what they come to depends on the processor and grows with the learning rate.
    """
    named = dict(ours.model.pretrained_model.named_parameters()) | {
        f"v_head.{name}": p for name, p in ours.model.v_head.named_parameters()
    }
    if "file" in weights:
        for name, expected in load_file(FOLDER / Path(weights["file"]).name).items():
            assert (named[name] - expected).abs().max() <= 1e-6, name
        return
    for name, expected in weights["abs_sums"].items():
        loose = name.endswith("attn.c_attn.bias")
        assert float(named[name].abs().sum()) == pytest.approx(expected, rel=key_bias_noise if loose else 2e-6), name


@pytest.mark.parametrize("name", ["right_padding", "right_padding_response_masks", "left_padding"])
def test_forward_passes(name):
    found = load("forward")
    case = found["cases"][name]
    start = load("step_kl")
    ours = trainer(start, case["padding_side"])
    queries, responses = listed(case["inputs"]["queries"]), listed(case["inputs"]["responses"])
    masks = None if case["inputs"]["response_masks"] is None else listed(case["inputs"]["response_masks"])
    inputs = ours.prepare_model_inputs(queries, responses)
    assert inputs["input_ids"].tolist() == case["model_inputs"]["input_ids"]
    assert inputs["attention_mask"].tolist() == case["model_inputs"]["attention_mask"]
    logprobs, logits, values, mask = ours.batched_forward_pass(ours.model, queries, responses, inputs, True, masks)
    expected = {key: torch.tensor(value) for key, value in case["outputs"].items() if key != "logits"}
    assert mask.tolist() == expected["masks"].tolist()
    inside = mask.bool()
    close = {"rtol": 1e-5, "atol": 1e-5}
    if name == "left_padding":  # read at shifted positions there
        assert (logprobs - expected["logprobs"])[inside].abs().max() > 1e-2
        other = trainer(start, "right")
        right = other.prepare_model_inputs(queries, responses)
        agreed, _, _, at = other.batched_forward_pass(other.model, queries, responses, right, False, masks)
        torch.testing.assert_close(logprobs[inside], agreed[at.bool()], **close)
        return
    torch.testing.assert_close(logprobs[inside], expected["logprobs"][inside], **close)
    torch.testing.assert_close(values[inside], expected["values"][inside], **close)
    if "logits" in case["outputs"]:
        stored = case["outputs"]["logits"]
        theirs = load_file(FOLDER / Path(stored["file"]).name)[stored["key"]]
        torch.testing.assert_close(logits[inside], theirs[inside], **close)


def test_forward_of_an_encoder_decoder():
    """Log-probs and values are theirs; the mask begins one token earlier."""
    case = load("seq2seq")
    described = load("divergences")["seq2seq_config"]
    policy = model(described, "seq2seq.safetensors", seq2seq=True)
    ours = PPOTrainer(tiny.config(), policy, model(described, "seq2seq.safetensors", seq2seq=True), tokenizer())
    queries, responses = listed(case["queries"]), listed(case["responses"])
    inputs = ours.prepare_model_inputs(queries, responses)
    assert {name: inputs[name].tolist() for name in case["model_inputs"]} == case["model_inputs"]
    logprobs, _, values, mask = ours.batched_forward_pass(policy, queries, responses, inputs)
    theirs = torch.tensor(case["outputs"]["masks"])
    assert (mask.sum(-1) == theirs.sum(-1) + 1).all()
    assert ((mask - theirs)[:, 0] == 1).all()
    for found, name in ((logprobs, "logprobs"), (values, "values")):
        expected = torch.tensor(case["outputs"][name])
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", range(4))
def test_generation(number):
    case = load("generate")["cases"][number]
    ours = trainer(load("step_kl"))
    ours.tokenizer.eos_token = ours.tokenizer.convert_ids_to_tokens(1)
    options = dict(case["generation"])
    end = case["tokenizer_eos"]
    queries = listed(case["inputs"]["queries"])
    options |= {"return_prompt": case["return_prompt"], "eos_token_id": end}
    found = ours.generate(queries, **options)
    assert [row.tolist() for row in found] == case["outputs"]["list"]
    assert [row.tolist() for row in ours.generate(queries, batch_size=2, **options)] == case["outputs"]["list_of_two"]
    pair = ours.generate(queries, generate_ref_response=True, **options)
    assert [row.tolist() for row in pair[0]] == case["outputs"]["list_pair"]["policy"]
    assert [row.tolist() for row in pair[1]] == case["outputs"]["list_pair"]["reference"]
    one = [ours.generate(query, **options)[0].tolist() for query in queries]
    assert one == [row[0] if isinstance(row[0], list) else row for row in case["outputs"]["one_tensor"]]
