"""A prompt that is computed once for its completions gives the numbers of one that is computed for each."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from transformers import AutoConfig

from dpo.lm.attention import AttentionError
from dpo.lm.batch import collate, collate_shared
from dpo.lm.hf import SHARED, HuggingFaceModel
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.model_config import ModelError
from dpo.lm.models import why_unshared
from dpo.lm.trial import fastest_way, try_ways
from dpo.lm.x_transformers import XTransformersModel
from tests.dpo.lm.trees import random_sequences
from tests.dpo.tiny import CONFIGS, GPT2, LLAMA, VOCABULARY, sequence, sharpen, tiny_model, x_config

CPU = torch.device("cpu")
SEEDS = range(24)
OWN = Way(shared=False, scored_only=False)  # the model's own logits of every position, prompts repeated

SHORT = x_config("absolute")
SHORT["max_seq_len"] = 14  # the longest sequence of random_sequences; rows of several are longer
GOOD = {
    **CONFIGS,
    "llama-gqa": {**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2},
    "llama-biased": {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "gpt2-scaled-by-layer": {**GPT2, "scale_attn_by_inverse_layer_idx": True},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": None},
    "gemma": {**LLAMA, "model_type": "gemma", "head_dim": 8},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4},
    "phi3": {**LLAMA, "model_type": "phi3", "pad_token_id": 0},
    "olmo2": {**LLAMA, "model_type": "olmo2"},
    "gpt-neox": {**LLAMA, "model_type": "gpt_neox"},  # rotates a quarter of each head, parallel residuals
    "opt": {**LLAMA, "model_type": "opt", "ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 0},
    "x-short": SHORT,
    "x-many-keywords": x_config(
        "rotary", {"attn_kv_heads": 1, "ff_glu": True, "ff_swish": True, "use_rmsnorm": True, "attn_qk_norm": True}
    ),
}


@cache
def model_of(name):
    """float32, as first rounding errors are what sharing may differ by."""
    if name in CONFIGS:
        return tiny_model(name)
    return build(GOOD[name])


def build(config, size=0.3):
    kind = XTransformersModel if config["model_type"] == "x-transformers" else HuggingFaceModel
    return sharpen(kind.random(config, 0), 0, size)


def fastest(model, may_share=True, agreed=bool):
    config = model.model.config if model.model.row_each else model.model.network.config.to_dict()
    trial = try_ways(model, config, VOCABULARY, may_share, CPU, agreed)
    return fastest_way(model, trial, VOCABULARY, may_share, CPU, agreed).way


def answer(model, batch, scored_only=True):
    """Log-probs, and the gradients of their sum under weights of which no two are alike."""
    logps = LogprobModel(model, Way(scored_only=scored_only))(batch).logps
    weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    (logps * weights).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def far(ours, theirs, floor=0.0):
    """How far apart, relative to their size."""
    return float((ours - theirs).norm()) / max(float(theirs.norm()), floor)


def assert_same(ours, theirs, logps=1e-5, gradients=1e-4, floor=1e-2):
    """Each parameter's gradient by its norm.

    A gradient of less than `floor` of all together counts as that large: in float32 such a one is a small difference of
    large numbers (of a bias of keys nothing else, for it moves all weights of a query alike).
    """
    assert ours[0].shape == theirs[0].shape
    assert far(ours[0], theirs[0]) <= logps
    assert ours[1].keys() == theirs[1].keys()
    whole = float(torch.cat([gradient.flatten() for gradient in theirs[1].values()]).norm())
    for name, gradient in theirs[1].items():
        assert far(ours[1][name], gradient, floor * whole) <= gradients, name


@pytest.mark.parametrize("name", GOOD)
def test_shared_equals_unshared(name):
    """Over random prompts with random completions: log-probs within 1e-5, each parameter's gradient within 1e-4."""
    model, saved, longest = model_of(name), 0, 0
    for seed in SEEDS:
        sequences = random_sequences(seed, VOCABULARY)
        own = answer(model, collate(sequences, 0), scored_only=False)
        shared = collate_shared(sequences, 1, model.row_each)
        saved += sum(len(s.prompt_ids) + len(s.completion_ids) for s in sequences) - shared.filled
        longest = max(longest, shared.input_ids.shape[1])
        assert_same(answer(model, shared), own)
        if seed < 4:
            assert_same(answer(model, collate(sequences, 1)), own)
            assert_same(answer(model, collate_shared(sequences, 1, model.row_each, range(len(sequences)))), own)
    assert saved > 300
    assert longest > 14  # longer than any sequence, and than the positions that x-short has


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith(("gpt2", "x-"))])
def test_shared_equals_unshared_in_float64(name):
    """The models that round nothing to float32 within."""
    model = deepcopy(model_of(name)).double()
    for seed in SEEDS:
        sequences = random_sequences(seed, VOCABULARY)
        own = answer(model, collate(sequences, 0), scored_only=False)
        assert_same(
            answer(model, collate_shared(sequences, 1, model.row_each)), own, logps=1e-12, gradients=1e-9, floor=1e-6
        )


def test_the_shared_part_is_seen_and_the_other_tails_are_not():
    """What the comparison would miss if both layouts were blind: another prompt changes all, a sibling nothing."""
    for name in GOOD:
        model = LogprobModel(model_of(name))
        with torch.no_grad():
            one, other_prompt, other_sibling = (
                model(model.collate([sequence(prompt, [5, 6, 7]), sequence(prompt, sibling)], 0)).logps[:3]
                for prompt, sibling in (([1, 2], [5, 8]), ([3, 2], [5, 8]), ([1, 2], [9, 10, 11, 12]))
            )
        assert (one - other_prompt).abs().min() > 1e-4, name
        torch.testing.assert_close(one, other_sibling, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "qwen2", "mistral", "gemma"])
def test_activation_checkpointing_changes_no_gradient(name):
    sequences = random_sequences(2, VOCABULARY)
    batch = collate_shared(sequences, 0)
    plain, checkpointed = model_of(name).train(), build(GOOD[name]).train()
    checkpointed.checkpoint_activations()
    calls = []
    checkpointed.network.base_model.register_forward_hook(lambda *_: calls.append("model"))
    layer = next(m for m in checkpointed.modules() if type(m).__name__.endswith(("DecoderLayer", "Block")))
    next(iter(layer.children())).register_forward_hook(lambda *_: calls.append("layer"))
    assert_same(answer(checkpointed, batch), answer(plain, batch))
    assert calls == ["layer", "model", "layer"]  # the backward pass computed it again
    calls.clear()
    assert_same(answer(checkpointed, collate(sequences, 0)), answer(plain, batch))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_last_layer_computes_what_is_read(name):
    """A prompt of 5 and completions of 3 and 2: read are the prompt's last position and all but the last of each
    completion, 1 + 2 + 1 of 10. A mixture of experts answers with more than hidden states and is left alone.
    """
    model = LogprobModel(model_of(name))
    seen: list[int] = []
    first_part = {"llama": "mlp.gate_proj", "gpt2": "mlp.c_fc", "mixtral": "mlp"}[name]
    parts = [part for path, part in model.named_modules() if path.endswith(f".{first_part}")]
    handles = [p.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1])) for p in parts]
    batch = model.collate([sequence([1, 2, 3, 4, 5], [6, 7, 8]), sequence([1, 2, 3, 4, 5], [9, 10])], 0)
    assert batch.tokens == 10
    model(batch)
    assert seen == ([10, 10] if name == "mixtral" else [10, 4])
    for handle in handles:
        handle.remove()


def test_layouts_may_alternate():
    """The attention of a Hugging Face model is exchanged between calls, and generation has its own back."""
    model = build(GOOD["llama-gqa"])
    sequences = random_sequences(1, VOCABULARY)
    both = [collate(sequences, 0), collate_shared(sequences, 0)]
    with torch.no_grad():
        before = model.generate([[1, 2, 3], [4]], 5, eos_id=VOCABULARY, pad_id=0)
        logits = model(both[0].input_ids)
        for batch in [*both, *both]:
            logps = LogprobModel(model)(batch).logps
            torch.testing.assert_close(logps, LogprobModel(model, OWN)(both[0]).logps, rtol=1e-5, atol=1e-5)
        LogprobModel(model)(both[1])
        assert model.generate([[1, 2, 3], [4]], 5, eos_id=VOCABULARY, pad_id=0) == before
        LogprobModel(model)(both[1])
        assert torch.equal(model(both[0].input_ids), logits)


def test_a_saved_config_says_nothing_of_our_attention(tmp_path):
    model = build(GOOD["llama-gqa"])
    texts = []
    for batch in (collate([sequence([1], [2])], 0), collate_shared([sequence([1], [2])], 0)):
        model.hidden(batch)
        model.write_config(tmp_path)
        texts.append((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert model.network.config._attn_implementation == SHARED
    assert texts[0] == texts[1]
    assert SHARED not in texts[1]


# What a config tells


@pytest.mark.parametrize("name", GOOD)
def test_nothing_speaks_against_sharing(name):
    assert why_unshared(GOOD[name]) is None


@pytest.mark.parametrize("name", [name for name in GOOD if not name.startswith("x-")])
def test_nor_does_what_is_written_on_disk(name, tmp_path):
    """A saved config.json has every field of its type."""
    model_of(name).write_config(tmp_path)
    assert why_unshared(AutoConfig.from_pretrained(tmp_path).to_dict()) is None


OLD_DYNAMIC = {"type": "dynamic", "factor": 2.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**LLAMA, "model_type": "mistral", "sliding_window": 4096}, "sliding_window = 4096"),
        ({**LLAMA, "model_type": "mistral"}, "sliding_window = 4096"),  # its default
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, "sliding_window = 4096"),
        ({**LLAMA, "model_type": "gemma2"}, "sliding_window = 4096"),
        ({**LLAMA, "model_type": "gemma2", "sliding_window": None}, "attn_logit_softcapping = 50.0"),
        ({**LLAMA, "model_type": "gemma3_text"}, "sliding_window = 4096"),
        ({**LLAMA, "model_type": "gpt_oss"}, "sliding_window = 128"),
        ({"model_type": "bloom", "vocab_size": 23, "hidden_size": 16}, "BloomForCausalLM has an attention of its own"),
        ({**LLAMA, "rope_parameters": DYNAMIC}, "rope_type = 'dynamic' changes with the length"),
        ({**LLAMA, "rope_scaling": DYNAMIC}, "rope_type = 'dynamic' changes with the length"),
        (
            {**LLAMA, "rope_scaling": OLD_DYNAMIC},
            "rope_type = 'dynamic' changes with the length",
        ),
        ({"model_type": "no such"}, "the model type 'no such' is no causal language model of this transformers"),
        (x_config("rotary", {"alibi_pos_bias": True}), "alibi_pos_bias among the keywords of x-transformers"),
        (x_config("rotary", {"shift_tokens": 1}), "shift_tokens among the keywords of x-transformers"),
        (
            x_config("rotary", {"shift_tokens": 1, "ff_glu": True}, num_memory_tokens=2),
            "num_memory_tokens, shift_tokens among the keywords of x-transformers",
        ),
    ],
)
def test_what_speaks_against_sharing(config, reason):
    assert why_unshared(config) == reason


@pytest.mark.parametrize(
    "kind",
    [
        "gpt_oss",
        "gemma3_text",
        "llama4_text",
        "gemma3",
        "llama4",
        "mamba",
        "falcon",
        "mpt",
        "gpt_neo",
        "jamba",
        "xlnet",
    ],
)
def test_types_that_see_something_else(kind):
    """With the defaults of their type: sinks, windows, recurrence, ALiBi, or an attention outside the interface."""
    assert why_unshared({"model_type": kind}) is not None


def test_x_transformers_dropouts_do_not_speak_against_sharing():
    """They are left out of the model."""
    assert why_unshared(x_config("rotary", {"attn_dropout": 0.1}, emb_dropout=0.1)) is None


# What the numbers tell


@pytest.mark.parametrize("may_share", [True, False])
@pytest.mark.parametrize("name", [name for name in GOOD if name != "x-short"])
def test_the_fastest_way_of_a_good_model(name, may_share):
    model = LogprobModel(model_of(name), OWN)
    assert fastest(model, may_share) == Way(shared=may_share)
    assert model.way == OWN  # it is for the caller to set


def test_the_fastest_way_in_bfloat16():
    model = LogprobModel(build(GOOD["llama-gqa"], size=0.1).bfloat16())
    assert fastest(model, True) == Way()


def test_the_fastest_way_does_not_share_shifted_tokens():
    """Were sharing allowed by mistake: the numbers tell."""
    model = build(x_config("rotary", {"shift_tokens": 1}))
    assert fastest(LogprobModel(model), True) == Way(shared=False)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_the_fastest_way_asks_whole_models_where_logits_are_more_than_a_head(kind):
    """A soft-cap or a scale behind the head: head and hidden states alone would give other numbers."""
    more = {"cohere": {"logit_scale": 0.2}, "granite": {"logits_scaling": 3.0}, "gemma2": {}}[kind]
    model = build({**LLAMA, "model_type": kind, **more})
    if kind == "gemma2":
        model.network.config.final_logit_softcapping = 2.0
    may_share = kind != "gemma2"
    assert fastest(LogprobModel(model), may_share) == OWN


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "model_type": "mistral", "sliding_window": 4},
        {**LLAMA, "model_type": "gemma2", "head_dim": 8},
    ],
)
def test_what_the_attention_would_get_wrong_is_never_shared(config):
    """Were sharing allowed by mistake: it is refused by the attention itself."""
    model = LogprobModel(build(config))
    with pytest.raises(AttentionError, match="asks its attention for"):
        model(model.collate([sequence([1, 2, 3], [4, 5])], 0))
    assert fastest(model, True) == fastest(model, False)
    assert fastest(model, True).shared is False


@pytest.mark.parametrize("kind", ["nemotron", "doge"])
def test_a_model_that_refuses_though_its_config_does_not_speak_against_it(kind):
    """Nemotron's layers do not hand on unknown arguments; Doge has a mask of its own making."""
    config = {**LLAMA, "model_type": kind}
    assert why_unshared(config) is None
    assert fastest(LogprobModel(build(config)), True).shared is False


def test_the_fastest_way_of_a_network_without_a_base_model():
    """Llama 4's base_model_prefix names no attribute of its CausalLM: it must be asked for its own logits, at least."""
    moe = {"num_local_experts": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 24}
    model = LogprobModel(build({**LLAMA, **moe, "model_type": "llama4_text", "head_dim": 8, "pad_token_id": 0}))
    assert fastest(model, False).shared is False


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_in_bfloat16_too_logits_are_more_than_a_head_where_they_are(kind):
    """There the check by number is coarse; the config decides."""
    more = {"gemma2": {"head_dim": 8}, "cohere": {"pad_token_id": 0}, "granite": {"logits_scaling": 4.0}}[kind]
    model = LogprobModel(build({**LLAMA, "model_type": kind, **more}).to(torch.bfloat16))
    assert fastest(model, False) == OWN


def test_a_model_whose_parts_take_more_than_hidden_states():
    """Bloom's feed-forward is handed the residual as well."""
    config = {"model_type": "bloom", "vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    assert why_unshared(config) is not None
    assert fastest(LogprobModel(build(config)), False) == Way(shared=False)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        # In the order of the questions: is there memory, own forward pass, head apart, sharing; then on the device.
        ([True, True, True, True, True], Way()),
        ([True, True, True, False, True], Way(shared=False)),
        ([True, True, True, True, False, True], Way(shared=False)),
        ([True, True, False, False], OWN),
        ([False, True, True, True, True], Way()),  # compared in the dtype of the model
    ],
)
def test_ranks_agree_on_the_slower_way(others, expected):
    answers = iter(others)
    assert fastest(LogprobModel(model_of("llama")), True, lambda ok: ok and next(answers)) == expected
    assert next(answers, None) is None


def test_ranks_agree_that_no_way_is_right():
    answers = iter([True, False, True, True])
    with pytest.raises(ModelError, match="another worker found other numbers"):
        fastest(LogprobModel(model_of("llama")), True, lambda ok: ok and next(answers))
