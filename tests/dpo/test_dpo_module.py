"""How the class DPO behaves as a module, and what it refuses. What it computes is in test_dpo_class.py."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from x_transformers import Decoder, TransformerWrapper
from x_transformers.dpo import DPO as InstalledDPO

from dpo import DPO
from tests.dpo.tiny import bigram_model, moved_policy, pair_tensors, sharpen, transformer_wrapper

IDS = torch.arange(1, 9).unsqueeze(0)
MODELS = ["x-rotary", "x-absolute-tied"]


def train_step(dpo):
    """One optimizer step of the usual loop, large enough to be seen."""
    optimizer = torch.optim.SGD(dpo.parameters(), lr=1.0)
    preferred, unpreferred, prompt_mask = pair_tensors()
    dpo(preferred, unpreferred, prompt_mask=prompt_mask).backward()
    optimizer.step()


def test_parameters_are_the_policys():
    network = transformer_wrapper("x-rotary")
    dpo = DPO(network)
    assert dpo.policy_model is network  # not a copy
    ours = [id(p) for p in network.parameters()]
    assert [id(p) for p in dpo.parameters()] == ours
    assert [id(p) for p in dpo.parameters(recurse=True)] == ours
    assert {name.split(".")[0] for name, _ in dpo.named_parameters()} == {"policy_model"}
    assert not [p for p in dpo.ref_model.parameters() if p.requires_grad or id(p) in ours]


def test_parameters_without_recursion():
    """A bigram table owns its weight; a list of two owns nothing itself."""
    assert len(list(DPO(bigram_model()).parameters(recurse=False))) == 1
    assert list(DPO(nn.Sequential(bigram_model())).parameters(recurse=False)) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_step_moves_the_policy_alone(name):
    dpo = DPO(transformer_wrapper(name), pad_id=0)
    before = dpo.ref_model(IDS)
    train_step(dpo)
    assert (dpo.policy_model(IDS) - before).abs().max() > 1e-3
    assert torch.equal(dpo.ref_model(IDS), before)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_begins_as_the_policy(name):
    network = transformer_wrapper(name)
    before = network(IDS)
    dpo = DPO(network)
    assert torch.equal(dpo.policy_model(IDS), before)
    assert torch.equal(dpo.ref_model(IDS), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_holds_the_policy_alone_and_loads_back(name):
    trained = moved_policy(name, pad_id=0)
    state = trained.state_dict()
    assert state.keys() == {f"policy_model.{key}" for key in trained.policy_model.state_dict()}
    fresh = DPO(transformer_wrapper(name), pad_id=0)
    fresh.load_state_dict(state)
    preferred, unpreferred, prompt_mask = pair_tensors()
    # The reference was not in the state, so an equal loss says that both models are right.
    assert fresh(preferred, unpreferred, prompt_mask=prompt_mask) == trained(
        preferred, unpreferred, prompt_mask=prompt_mask
    )


def test_modes_reach_the_policy_alone():
    dpo = DPO(transformer_wrapper("x-rotary").train())
    assert not any(module.training for module in dpo.ref_model.modules())
    dpo.eval().train()
    assert dpo.policy_model.training
    assert not any(module.training for module in dpo.ref_model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_to_moves_both_models(name):
    dpo = moved_policy(name, pad_id=0).to(torch.float64)
    assert {p.dtype for model in (dpo.policy_model, dpo.ref_model) for p in model.parameters()} == {torch.float64}
    preferred, unpreferred, prompt_mask = pair_tensors()
    loss = dpo(preferred, unpreferred, prompt_mask=prompt_mask)
    assert loss.dtype == torch.float64
    expected = moved_policy(name, pad_id=0)(preferred, unpreferred, prompt_mask=prompt_mask)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_is_another_pair_of_models(name):
    dpo = moved_policy(name, pad_id=0)
    copy = deepcopy(dpo)
    policy, reference = dpo.policy_model(IDS), dpo.ref_model(IDS)
    assert torch.equal(copy.policy_model(IDS), policy)
    assert torch.equal(copy.ref_model(IDS), reference)
    sharpen(copy.policy_model, seed=1)
    sharpen(copy.ref_model, seed=2)
    assert torch.equal(dpo.policy_model(IDS), policy)
    assert torch.equal(dpo.ref_model(IDS), reference)
    assert not torch.equal(copy.policy_model(IDS), policy)
    assert not torch.equal(copy.ref_model(IDS), reference)


def test_no_grad_is_kept():
    preferred, unpreferred, prompt_mask = pair_tensors()
    dpo = moved_policy("x-rotary", pad_id=0)
    logits = []
    for model in (dpo.policy_model, dpo.ref_model):
        model.register_forward_hook(lambda _module, _ids, output: logits.append(output.requires_grad))
    dpo(preferred, unpreferred, prompt_mask=prompt_mask)
    assert logits == [True, True, False, False]  # the policy's two sides, then the reference's
    logits.clear()
    with torch.no_grad():
        dpo(preferred, unpreferred, prompt_mask=prompt_mask)
    assert not any(logits)  # nothing is kept for a backward that will not come


def test_ids_may_be_of_any_integer_type():
    dpo = moved_policy("x-rotary", pad_id=0)
    preferred, unpreferred, prompt_mask = pair_tensors()
    loss = dpo(preferred, unpreferred, prompt_mask=prompt_mask)
    assert dpo(preferred.int(), unpreferred.int(), prompt_mask=prompt_mask) == loss


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_beta_must_be_positive(beta):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        DPO(bigram_model(), beta=beta)


def test_reduction_must_be_known():
    with pytest.raises(ValueError, match="reduction must be"):
        DPO(bigram_model(), reduction="max")


@pytest.mark.parametrize("side", ["preferred_seq", "unpreferred_seq"])
@pytest.mark.parametrize("row", [[1, 2, 3, 0], [1, 2, 0, 0], [0, 0, 0, 0]], ids=["prompt", "prompt and pad", "pad"])
def test_a_row_without_a_token_to_score_is_named(side, row):
    good = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6]])
    bad = good.clone()
    bad[1] = torch.tensor(row)
    sides = (bad, good) if side == "preferred_seq" else (good, bad)
    prompt_mask = torch.tensor([[True, True, True, False]]).expand(3, 4)
    with pytest.raises(ValueError, match=rf"^{side} has no token to score in row\(s\) \[1\]"):
        DPO(bigram_model(), pad_id=0)(*sides, prompt_mask=prompt_mask)


def test_sequences_of_one_token_have_none_to_score():
    one = torch.tensor([[1], [2]])
    with pytest.raises(ValueError, match=r"row\(s\) \[0, 1\]"):
        DPO(transformer_wrapper("x-rotary"))(one, one, prompt_mask=torch.zeros(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("name", ["prompt_mask", "preferred_seq_mask", "unpreferred_seq_mask"])
@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.long,
        torch.Tensor.byte,
        lambda mask: mask[:, 1:],
        lambda mask: mask[0, 1:],
        lambda mask: mask[:, :1],
    ],
    ids=["int64", "uint8", "a column less", "an entry less", "one entry a row"],
)
def test_masks_must_be_bool_and_of_the_sequences_shape(name, change):
    preferred, unpreferred, prompt_mask = pair_tensors()
    masks = {"prompt_mask": prompt_mask, "preferred_seq_mask": ~prompt_mask, "unpreferred_seq_mask": ~prompt_mask}
    masks[name] = change(masks[name])
    with pytest.raises(ValueError, match=f"^{name} must be bool with shape"):
        DPO(bigram_model(23))(preferred, unpreferred, **masks)


@pytest.mark.parametrize("shape", [(9,), (1, 9)])
def test_one_mask_may_stand_for_all_rows(shape):
    preferred, unpreferred, _ = pair_tensors()
    dpo = moved_policy("x-rotary", pad_id=0)
    prompt = torch.arange(9) < 4
    unpreferred[:, :4] = preferred[:, :4]
    whole = dpo(preferred, unpreferred, prompt_mask=prompt.expand(4, 9))
    assert dpo(preferred, unpreferred, prompt_mask=prompt.view(shape)) == whole
    some = torch.arange(9) < 7
    masks = {"preferred_seq_mask": some, "unpreferred_seq_mask": some}
    rows = {name: mask.expand(4, 9) for name, mask in masks.items()}
    given = {name: mask.view(shape) for name, mask in masks.items()}
    assert dpo(preferred, unpreferred, prompt_mask=prompt.view(shape), **given) == dpo(
        preferred, unpreferred, prompt_mask=prompt.expand(4, 9), **rows
    )


def test_the_installed_class_takes_one_mask_for_all_rows_beside_a_pad_id_alone():
    """And none of integers, as here."""
    preferred, unpreferred, _ = pair_tensors()
    prompt = torch.arange(9) < 4
    with_pads = moved_policy("x-rotary", InstalledDPO, pad_id=0)
    whole = with_pads(preferred, unpreferred, prompt_mask=prompt.expand(4, 9))
    assert with_pads(preferred, unpreferred, prompt_mask=prompt) == whole
    with pytest.raises(IndexError):
        moved_policy("x-rotary", InstalledDPO)(preferred, unpreferred, prompt_mask=prompt)
    for integers in (prompt.long(), prompt.byte()):
        with pytest.raises(RuntimeError, match="bool"):
            with_pads(preferred, unpreferred, prompt_mask=integers.expand(4, 9))


@pytest.mark.parametrize(
    ("preferred", "unpreferred", "message"),
    [
        (IDS, IDS[:, :-1], "must have one shape"),
        (IDS[0], IDS[0], "must have one shape"),
        (IDS.float(), IDS, "preferred_seq must hold integer token ids"),
        (IDS, IDS.bool(), "unpreferred_seq must hold integer token ids"),
    ],
)
def test_sequences_must_be_two_equal_tables_of_ids(preferred, unpreferred, message):
    with pytest.raises(ValueError, match=message):
        DPO(bigram_model())(preferred, unpreferred, prompt_mask=torch.zeros_like(IDS, dtype=torch.bool))


def test_the_usual_listing_runs():
    """A model, two random sequences, a prompt mask, a loss, a backward pass, an optimizer over the module."""
    model = TransformerWrapper(num_tokens=256, max_seq_len=64, attn_layers=Decoder(dim=32, depth=1, heads=2))
    dpo = DPO(model, beta=0.1)
    preferred, unpreferred = torch.randint(0, 256, (2, 64)), torch.randint(0, 256, (2, 64))
    prompt_mask = torch.arange(64).expand(2, 64) < 16
    loss = dpo(preferred, unpreferred, prompt_mask=prompt_mask)
    loss.backward()
    torch.optim.AdamW(dpo.parameters(), lr=1e-3).step()
    assert loss.shape == ()
    assert dpo(preferred, unpreferred, prompt_mask=prompt_mask) < loss


def distance(beta):
    """How far log-probs have moved from the reference, after the loss has had its say."""
    dpo = DPO(transformer_wrapper("x-rotary"), beta=beta, pad_id=0)
    optimizer = torch.optim.Adam(dpo.parameters(), lr=1e-2)
    preferred, unpreferred, prompt_mask = pair_tensors()
    for _ in range(60):
        optimizer.zero_grad()
        dpo(preferred, unpreferred, prompt_mask=prompt_mask).backward()
        optimizer.step()
    moved = dpo.policy_model(preferred).log_softmax(-1) - dpo.ref_model(preferred).log_softmax(-1)
    return moved.abs().mean().item()


def test_a_larger_beta_is_a_stronger_pull_to_the_reference():
    """With beta 10 a log-ratio of 1 is a sigmoid of 0.99995 already; with 0.01 it goes on and on."""
    assert distance(10.0) < 0.5 * distance(0.01)
