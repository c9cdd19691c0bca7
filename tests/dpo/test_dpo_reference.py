"""The reference of the class DPO: another may be assigned, and checkpoints that hold one load."""

import copy
import math

import pytest
import torch
from torch import nn
from x_transformers import Decoder, TransformerWrapper
from x_transformers.dpo import DPO as InstalledDPO

from dpo import DPO
from tests.dpo.tiny import moved_policy, pair_tensors, sharpen, transformer_wrapper

MODELS = ["x-rotary", "x-absolute-tied"]
IDS = torch.arange(1, 9).unsqueeze(0)


def other_model(name, seed=5):
    return sharpen(transformer_wrapper(name), seed)


def loss_of(dpo):
    preferred, unpreferred, prompt_mask = pair_tensors()
    return dpo(preferred, unpreferred, prompt_mask=prompt_mask)


# Assignment


@pytest.mark.parametrize("name", MODELS)
def test_an_assigned_reference_is_the_one_that_counts(name):
    """With the policy's own weights as the reference the loss is ln 2; with those of another model it is not."""
    dpo = DPO(transformer_wrapper(name), pad_id=0)
    assert loss_of(dpo).item() == pytest.approx(math.log(2), abs=1e-6)
    other = other_model(name).train()
    dpo.ref_model = other
    assert dpo.ref_model is other
    assert loss_of(dpo).item() != pytest.approx(math.log(2), abs=1e-4)
    dpo.ref_model = copy.deepcopy(dpo.policy_model)
    assert loss_of(dpo).item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_installed_class_computes_the_same_with_an_assigned_reference():
    """Without pads and with a prompt of one token, which theirs has to be told is none."""
    preferred, unpreferred = (seq.clamp(min=1) for seq in pair_tensors()[:2])
    unpreferred[:, 0] = preferred[:, 0]
    prompt_mask = (torch.arange(9) < 1).expand(4, 9)
    losses = []
    for cls, mask in ((DPO, prompt_mask), (InstalledDPO, torch.zeros_like(prompt_mask))):
        dpo = cls(transformer_wrapper("x-rotary"))
        dpo.ref_model = other_model("x-rotary").eval()
        losses.append(dpo(preferred, unpreferred, prompt_mask=mask))
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)


def test_an_assigned_reference_is_frozen_and_hidden():
    dpo = DPO(transformer_wrapper("x-rotary"), pad_id=0)
    names = list(dpo.state_dict())
    dpo.ref_model = other_model("x-rotary").train()
    dpo.train()
    assert not any(module.training for module in dpo.ref_model.modules())
    assert not any(parameter.requires_grad for parameter in dpo.ref_model.parameters())
    assert list(dpo.state_dict()) == names
    assert all(name.startswith("policy_model.") for name, _ in dpo.named_parameters())
    assert {id(p) for p in dpo.parameters()}.isdisjoint(id(p) for p in dpo.ref_model.parameters())
    assert dpo.ref_model not in list(dpo.modules())


@pytest.mark.parametrize("name", MODELS)
def test_an_assigned_reference_moves_and_is_copied_with_the_module(name):
    dpo = DPO(transformer_wrapper(name), pad_id=0)
    dpo.ref_model = other_model(name)
    before = loss_of(dpo).item()
    twin = copy.deepcopy(dpo)
    sharpen(dpo.ref_model, seed=9)
    assert loss_of(twin).item() == before
    assert loss_of(dpo).item() != before
    twin.to(torch.float64)
    assert {p.dtype for p in twin.ref_model.parameters()} == {torch.float64}
    assert loss_of(twin).item() == pytest.approx(before, abs=1e-5)


def test_an_assigned_reference_is_saved_with_the_whole_module(tmp_path):
    model, other = (
        TransformerWrapper(num_tokens=23, max_seq_len=16, attn_layers=Decoder(dim=16, depth=1), tie_embedding=True)
        for _ in range(2)
    )
    dpo = DPO(sharpen(model, seed=0), pad_id=0)
    dpo.ref_model = sharpen(other, seed=5)
    torch.save(dpo, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(again.ref_model(IDS), dpo.ref_model(IDS))
    assert loss_of(again) == loss_of(dpo)


def test_a_step_leaves_an_assigned_reference_alone():
    """Its head is tied to its own embedding, although it was copied before anything of ours saw it."""
    network = transformer_wrapper("x-absolute-tied")
    early = copy.deepcopy(network)  # its head still reads the embedding of `network`
    dpo = DPO(network, pad_id=0)
    dpo.ref_model = early
    before = dpo.ref_model(IDS)
    loss_of(dpo).backward()
    torch.optim.SGD(dpo.parameters(), lr=1.0).step()
    assert torch.equal(dpo.ref_model(IDS), before)


@pytest.mark.parametrize("value", [None, "a model", torch.zeros(2), lambda ids: ids], ids=lambda v: type(v).__name__)
def test_what_is_no_module_is_refused_by_its_type(value):
    dpo = DPO(transformer_wrapper("x-rotary"))
    before = dpo.ref_model
    with pytest.raises(TypeError, match=rf"^ref_model must be a torch\.nn\.Module, it is .*{type(value).__name__}"):
        dpo.ref_model = value
    assert dpo.ref_model is before
    with pytest.raises(TypeError, match=r"^model must be a torch\.nn\.Module"):
        DPO(value)


def test_a_reference_that_would_move_with_the_policy_is_refused():
    dpo = DPO(transformer_wrapper("x-rotary"))
    half = other_model("x-rotary")
    half.token_emb = dpo.policy_model.token_emb
    for shared in (dpo.policy_model, half):
        with pytest.raises(ValueError, match=r"^ref_model shares \d+ trained parameter\(s\) with policy_model"):
            dpo.ref_model = shared
    assert all(p.requires_grad for p in dpo.policy_model.parameters())
    dpo.policy_model.token_emb.requires_grad_(False)
    dpo.ref_model = half  # what nobody trains may be shared
    assert dpo.ref_model is half


# Checkpoints


def checkpoint_of_the_installed_class(name):
    """A trained policy and a reference, under their names."""
    return moved_policy(name, InstalledDPO, pad_id=0)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_the_installed_class_loads_whole(name, strict):
    theirs = checkpoint_of_the_installed_class(name)
    state = theirs.state_dict()
    assert len(state) == 2 * len(DPO(transformer_wrapper(name)).state_dict())
    ours = DPO(other_model(name), pad_id=0)
    found = ours.load_state_dict(state, strict=strict)
    assert found.missing_keys == found.unexpected_keys == []
    for attribute in ("policy_model", "ref_model"):
        for key, tensor in getattr(ours, attribute).state_dict().items():
            assert torch.equal(tensor, state[f"{attribute}.{key}"])
    assert not any(p.requires_grad for p in ours.ref_model.parameters())
    assert not any(key.startswith("ref_model.") for key in ours.state_dict())


def test_it_loads_inside_another_module_and_by_assignment():
    state = checkpoint_of_the_installed_class("x-rotary").state_dict()
    outer = nn.ModuleDict({"inner": DPO(other_model("x-rotary"), pad_id=0)})
    outer.load_state_dict({f"inner.{key}": value.double() for key, value in state.items()}, assign=True)
    assert loss_of(outer["inner"]).dtype == torch.float64
    assert not any(p.requires_grad for p in outer["inner"].ref_model.parameters())
    first = next(iter(outer["inner"].ref_model.state_dict()))
    torch.testing.assert_close(outer["inner"].ref_model.state_dict()[first], state[f"ref_model.{first}"].double())


def test_a_checkpoint_of_ours_leaves_the_reference_as_it_is():
    trained = moved_policy("x-rotary", pad_id=0)
    fresh = DPO(other_model("x-rotary"), pad_id=0)
    before = fresh.ref_model(IDS)
    found = fresh.load_state_dict(trained.state_dict())
    assert found.missing_keys == found.unexpected_keys == []
    assert torch.equal(fresh.policy_model(IDS), trained.policy_model(IDS))
    assert torch.equal(fresh.ref_model(IDS), before)


@pytest.mark.parametrize("side", ["policy_model", "ref_model"])
def test_what_does_not_fit_is_named_for_both_models(side):
    state = checkpoint_of_the_installed_class("x-rotary").state_dict()
    gone = next(key for key in state if key.startswith(side))
    changed = {key: value for key, value in state.items() if key != gone} | {f"{side}.extra": torch.zeros(1)}
    ours = DPO(transformer_wrapper("x-rotary"))
    with pytest.raises(RuntimeError) as error:
        ours.load_state_dict(changed)
    assert f'Missing key(s) in state_dict: "{gone}"' in str(error.value)
    assert f'Unexpected key(s) in state_dict: "{side}.extra"' in str(error.value)
    found = ours.load_state_dict(changed, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == ([gone], [f"{side}.extra"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(state | {gone: torch.zeros(3)}, strict=False)
