"""The reference model: copies, shared layers, and what they freeze."""

import warnings

import pytest
import torch
from torch import nn
from x_transformers import Decoder, TransformerWrapper

from ppo.models import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    XTransformersWithValueHead,
    create_reference_model,
)
from tests.dpo.tiny import sharpen
from tests.ppo.models_tiny import ids, lora, names_of_gradients, tiny, x_network

tied = pytest.mark.filterwarnings("ignore:The model ties weights")


def build(kind):
    """Each kind of model that can be copied; all of them answer to ids()."""
    plain, _, wrapped = kind.rpartition("+")
    name = plain or wrapped
    if name.startswith("x-"):
        network = x_network(name.removeprefix("x-"))
        return XTransformersWithValueHead(network).eval() if plain else network
    return AutoModelForCausalLMWithValueHead(tiny(name)).eval() if plain else tiny(name)


KINDS = ["gpt2", "llama", "neox", "gpt2+head", "llama+head", "neox+head", "x-rotary", "x-tied", "x-absolute+head"]


def logits(model, tokens):
    out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("kind", KINDS)
def test_without_shared_layers_it_is_a_whole_frozen_copy(kind):
    model = build(kind).train()
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    reference = create_reference_model(model)
    assert type(reference) is type(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert model.training
    assert not any(part.training for part in reference.modules())
    assert not any(p.requires_grad for p in reference.parameters())
    own = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in own for p in reference.parameters())
    before = logits(reference, ids())
    torch.testing.assert_close(before, logits(model.eval(), ids()), rtol=0, atol=0)
    sharpen(model, seed=9)
    torch.testing.assert_close(logits(reference, ids()), before, rtol=0, atol=0)


@tied
@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_layers_are_the_same_memory_and_frozen_in_both(kind, shared):
    model = build(kind)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)  # left over from an earlier step
    reference = create_reference_model(model, num_shared_layers=shared)
    other = dict(reference.named_parameters())
    common = {name for name, p in parameters.items() if other[name].data_ptr() == p.data_ptr()}
    number = 2 * shared if kind.startswith("x-") else shared
    layers = {name.split("layers.")[-1].split("h.")[-1].split(".")[0] for name in common if "emb" not in name}
    below = {str(n) for n in range(number)}
    assert {layer for layer in layers if layer.isdigit()} == below
    assert any("wte" in name or "emb" in name for name in common)
    assert not any("v_head" in name or "ln_f" in name or "final" in name for name in common)
    assert {name for name, p in parameters.items() if not p.requires_grad} == common
    assert not any(p.requires_grad for p in other.values())
    assert {name for name, p in parameters.items() if p.grad is None} == common
    model.zero_grad()
    logits(model, ids()).sum().backward()
    assert names_of_gradients(model) & common == set()
    assert names_of_gradients(reference) == set()


@tied
def test_a_step_of_training_moves_the_policy_and_not_the_reference():
    model = build("gpt2+head")
    reference = create_reference_model(model, num_shared_layers=1)
    before = logits(reference, ids())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    logits_, _, values = model(ids())
    (logits_.pow(2).mean() + values.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(logits(reference, ids()), before, rtol=0, atol=0)
    assert (logits(model, ids()) - before).abs().max() > 0.1


@tied
def test_shared_layers_stay_shared_when_both_models_are_moved():
    model = build("gpt2+head")
    reference = create_reference_model(model, num_shared_layers=2)
    model.double()
    reference.double()
    assert model.pretrained_model.transformer.h[1].ln_1.weight.data_ptr() == (
        reference.pretrained_model.transformer.h[1].ln_1.weight.data_ptr()
    )


@pytest.mark.parametrize("kind", ["gpt2", "gpt2+head", "x-tied", "x-tied+head"])
def test_freezing_a_tied_output_head_is_said(kind):
    with pytest.warns(UserWarning, match=r"ties weights.*(lm_head|to_logits).* is .*sharing freezes them.*Untie"):
        create_reference_model(build(kind), num_shared_layers=0)


@pytest.mark.parametrize("kind", ["llama+head", "x-absolute"])
def test_where_nothing_is_tied_nothing_is_said(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_reference_model(build(kind), num_shared_layers=1)
        create_reference_model(build("gpt2"))


@pytest.mark.parametrize("kind", ["gpt2", "llama+head", "neox", "x-rotary", "x-tied+head"])
def test_more_layers_than_there_are_is_refused(kind):
    model = build(kind)
    layers = 2 if kind.split("+")[0] in ("llama", "neox") else 3
    with pytest.raises(ValueError, match=rf"num_shared_layers = {layers}: no parameter of .* is named like .*pattern"):
        create_reference_model(model, num_shared_layers=layers)
    assert all(p.requires_grad for p in model.parameters())  # nothing was frozen on the way


@pytest.mark.parametrize("number", [-1, 1.0, True, "2"])
def test_what_is_no_number_of_layers_is_refused(number):
    with pytest.raises(ValueError, match=f"num_shared_layers is {number!r} and has to be a whole number from 0"):
        create_reference_model(tiny("gpt2"), num_shared_layers=number)


def test_t5_needs_a_pattern_and_is_told():
    model = AutoModelForSeq2SeqLMWithValueHead(tiny("t5"))
    with pytest.raises(ValueError, match=r"give pattern, such as 'encoder\.block\.\{layer\}'.*shared\.weight"):
        create_reference_model(model, num_shared_layers=1)
    with pytest.warns(UserWarning, match="ties weights"):
        reference = create_reference_model(model, num_shared_layers=1, pattern="encoder.block.{layer}")
    ours, theirs = model.pretrained_model, reference.pretrained_model
    for name, shared in (("encoder.block.0", True), ("encoder.block.1", False), ("decoder.block.0", False)):
        one, other = (next(m.get_submodule(name).parameters()) for m in (ours, theirs))
        assert (one.data_ptr() == other.data_ptr()) == shared


def test_bart_shares_the_encoder_and_the_first_decoder_layers():
    model = tiny("bart")
    with pytest.warns(UserWarning, match="ties weights"):
        reference = create_reference_model(model, num_shared_layers=1)
    other = dict(reference.named_parameters())
    common = {name for name, p in model.named_parameters() if other[name].data_ptr() == p.data_ptr()}
    assert any(name.startswith("model.encoder.layers.1") for name in common)
    assert any(name.startswith("model.decoder.layers.0") for name in common)
    assert not any(name.startswith("model.decoder.layers.1") for name in common)


@tied
def test_an_explicit_pattern_that_matches_nothing_is_refused():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match=r"num_shared_layers = 1: .*'no\.such\.1'.*transformer\.wte\.weight"):
        create_reference_model(model, num_shared_layers=1, pattern="no.such.{layer}")
    assert all(p.requires_grad for p in model.parameters())


@tied
def test_layer_1_is_not_layer_10():
    layers = Decoder(dim=16, depth=8, heads=2)
    network = TransformerWrapper(num_tokens=40, max_seq_len=64, attn_layers=layers)
    reference = create_reference_model(network, num_shared_layers=1)  # entry 2, and there are 10 to 15
    other = dict(reference.named_parameters())
    common = [name for name, p in network.named_parameters() if other[name].data_ptr() == p.data_ptr()]
    assert {name.split(".")[2] for name in common if "layers" in name} == {"0", "1"}
    with pytest.raises(ValueError, match=r"attn_layers\.layers\.16"):
        create_reference_model(network, num_shared_layers=8)


def test_a_layer_without_parameters_is_not_taken_for_another_one():
    layers = [nn.Identity() if n == 1 else nn.Linear(2, 2) for n in range(12)]
    model = nn.ModuleDict({"transformer": nn.ModuleDict({"h": nn.ModuleList(layers)})})
    with pytest.raises(ValueError, match=r"num_shared_layers = 1: no parameter.*'transformer\.h\.1'"):
        create_reference_model(model, num_shared_layers=1)


def test_entries_in_another_order_need_a_pattern():
    layers = Decoder(dim=16, depth=2, heads=2, sandwich_coef=1)
    network = TransformerWrapper(num_tokens=40, max_seq_len=64, attn_layers=layers)
    with pytest.raises(ValueError, match=r"are 'aaff' and not attention and feed-forward in turn.*Give pattern"):
        create_reference_model(network, num_shared_layers=1)
    create_reference_model(network, num_shared_layers=1, pattern="attn_layers.layers.1")


@pytest.mark.parametrize("marked", [True, False])
def test_under_zero_3_it_says_what_to_do_instead(marked, monkeypatch):
    model = tiny("gpt2")
    if marked:
        model.transformer.wte.weight.ds_id = 0
    else:
        monkeypatch.setattr("ppo.models.reference.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel is partitioned.*ZeRO stage 3.*Load the reference from the folder"
    ):
        create_reference_model(model)


def test_a_reference_of_a_copy_of_a_tied_network_is_its_own():
    """x-transformers' own tie would let the copy read the embedding of the original."""
    network = x_network("tied")
    reference = create_reference_model(network)
    before = reference(ids())
    sharpen(network, seed=5)
    torch.testing.assert_close(reference(ids()), before, rtol=0, atol=0)


def test_models_with_adapters():
    pytest.importorskip("peft")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny("llama"), peft_config=lora())
    reference = create_reference_model(model, num_shared_layers=1)
    assert reference.is_peft_model
    other = dict(reference.named_parameters())
    common = {name for name, p in model.named_parameters() if other[name].data_ptr() == p.data_ptr()}
    assert any("layers.0" in name and "lora" in name for name in common)
    assert not any("layers.1" in name for name in common)
