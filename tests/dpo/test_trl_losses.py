"""Every loss against an installed TRL's own code, run on log-probs that we choose: value and gradient."""

import inspect
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from dpo.losses import LOSSES, PairLogps
from dpo.terms import PER_TOKEN

trl = pytest.importorskip("trl")

PAIRS = 5
WIDTH = 12
NUMBERS = {"beta": 0.4, "label_smoothing": 0.2, "tau": 0.3, "divergence_alpha": 0.3}
TRL_DIVERGENCES = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "js": "js_divergence",
    "alpha": "alpha_divergence",
}
TRL_LOSSES = [
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
]


def takes(name, option):
    return option in inspect.signature(LOSSES[name]).parameters


DIVERGENT = [name for name in TRL_LOSSES if takes(name, "divergence")]


class Batch(NamedTuple):
    leaf: torch.Tensor  # [2B, T-1]: what gradients are of
    logps: torch.Tensor  # the same, 0 outside the completions
    completion_mask: torch.Tensor  # [2B, T]
    reference: torch.Tensor  # [2B]: sums, some nats away


def a_batch(dtype):
    generator = torch.Generator().manual_seed(5)
    starts, ends = torch.randint(1, 4, (2 * PAIRS, 1), generator=generator), torch.arange(2 * PAIRS)[:, None] + 5
    places = torch.arange(WIDTH)
    completion_mask = ((places >= starts) & (places < ends.clamp(max=WIDTH))).long()
    logps = -3 * torch.rand(2 * PAIRS, WIDTH - 1, generator=generator, dtype=torch.float64) * completion_mask[:, 1:]
    reference = logps.sum(1) + 5 * torch.rand(2 * PAIRS, generator=generator, dtype=torch.float64) - 2.5
    leaf = logps.to(dtype).requires_grad_()
    return Batch(leaf, leaf * completion_mask[:, 1:], completion_mask, reference.to(dtype))


def no_model(logps):
    """What TRL's loss reads of a model's outputs: the log-probs are ours, the rest is for metrics only."""
    others = {name: torch.zeros_like(logps) for name in ("entropy", "mean_logits", "log_sum_sq_probs")}
    outputs = SimpleNamespace(log_probs=logps, is_top1=torch.zeros_like(logps).bool(), logits=None, **others)
    return lambda **_: outputs


def no_trainer(name, divergence, beta):
    """What TRL's loss reads of its trainer."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=SimpleNamespace(discopop_tau=NUMBERS["tau"]),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=TRL_DIVERGENCES[divergence],
        f_alpha_divergence_coef=NUMBERS["divergence_alpha"],
        loss_types=[name],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=NUMBERS["label_smoothing"],
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )


def their_loss(name, divergence, batch, beta=NUMBERS["beta"]):
    """TRL's mean over the batch."""
    _, logps, completion_mask, reference = batch
    reference_chosen, reference_rejected = reference.chunk(2)
    inputs = {
        "input_ids": torch.ones_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    trainer = no_trainer(name, divergence, beta)
    return trl.DPOTrainer._compute_loss(trainer, no_model(logps), inputs, return_outputs=False)


def our_pairs(batch):
    _, logps, completion_mask, reference = batch
    policy = PairLogps(*logps.sum(1).chunk(2), *completion_mask[:, 1:].sum(1).chunk(2))
    return policy, PairLogps(*reference.chunk(2))


def our_loss(name, divergence, batch, beta=NUMBERS["beta"]):
    policy, reference = our_pairs(batch)
    options = {**NUMBERS, "beta": beta, "divergence": divergence}
    if name == "sigmoid":  # TRL no longer smooths its labels
        options["label_smoothing"] = 0.0
    terms = LOSSES[name](policy, reference, **{key: value for key, value in options.items() if takes(name, key)})
    assert terms.shape == policy.chosen.shape
    return terms.sum() / (policy.chosen_tokens.sum() if name in PER_TOKEN else len(terms))


def assert_same(ours, theirs, leaf, rtol=1e-6):
    """Values, and gradients relative to the largest, which is not 0."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    (our_gradient,), (their_gradient,) = (torch.autograd.grad(loss, leaf, retain_graph=True) for loss in (ours, theirs))
    size = float(their_gradient.abs().max())
    assert size > 1e-4
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=rtol * size)


def test_these_are_all_of_trl_losses():
    """TRL itself lists them; each of them is ours under the same name."""
    with pytest.raises(ValueError, match="Unknown loss type") as refusal:
        their_loss("no_such_loss", "reverse_kl", a_batch(torch.float32))
    listed = re.findall(r"'(\w+)'", str(refusal.value).partition("[")[2])
    assert sorted(listed) == sorted(TRL_LOSSES)
    assert len(listed) == 15
    assert LOSSES.keys() >= set(listed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TRL_LOSSES)
def test_a_loss_is_trl_s(name, dtype):
    batch = a_batch(dtype)
    assert_same(our_loss(name, "reverse_kl", batch), their_loss(name, "reverse_kl", batch), batch.leaf)


@pytest.mark.parametrize("name", [name for name in TRL_LOSSES if not name.startswith("aot")])
def test_every_term_is_trl_s(name):
    """Batches of one pair: a mean could hide terms that are wrong in opposite ways."""
    whole = a_batch(torch.float64)
    values = []
    for pair in range(PAIRS):
        batch = Batch(*(part.detach()[[pair, pair + PAIRS]] for part in whole))
        theirs = their_loss(name, "reverse_kl", batch)
        torch.testing.assert_close(our_loss(name, "reverse_kl", batch), theirs, rtol=1e-6, atol=0)
        values.append(theirs.item())
    assert len(set(values)) > 1


@pytest.mark.parametrize("beta", [0.05, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
@pytest.mark.parametrize("name", DIVERGENT)
def test_a_divergence_is_trl_s(name, divergence, dtype, beta):
    """alpha in float64 against TRL in float32, which is all that TRL takes there."""
    batch = a_batch(dtype)
    ours = our_loss(name, divergence, batch, beta)
    assert abs(ours / our_loss(name, "reverse_kl", batch, beta) - 1) > 1e-3
    if divergence == "alpha" and dtype == torch.float64:
        with pytest.raises(KeyError):
            their_loss(name, divergence, batch, beta)
        theirs = their_loss(name, divergence, a_batch(torch.float32), beta)
        torch.testing.assert_close(ours.float(), theirs, rtol=3e-6, atol=0)
    else:
        assert_same(ours, their_loss(name, divergence, batch, beta), batch.leaf)


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "hinge", "robust"])
def test_the_exponents_end_where_trl_s_do(name):
    """Log-ratios of which two are thousands below 0: TRL holds the scores of alpha there (the others overflow)."""
    batch = a_batch(torch.float32)
    far = batch.reference + 5000 * torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 0, 0])
    far = batch._replace(reference=far)
    ours = our_loss(name, "alpha", far)
    assert ours.abs() > 1e30
    assert_same(ours, their_loss(name, "alpha", far), batch.leaf)


@pytest.mark.parametrize("name", TRL_LOSSES)
def test_the_divergences_are_where_trl_has_them(name):
    """TRL's value moves with its divergence where our loss takes one, and nowhere else."""
    batch = a_batch(torch.float32)
    moved = their_loss(name, "forward_kl", batch) != their_loss(name, "reverse_kl", batch)
    assert bool(moved) == takes(name, "divergence")


def test_the_defaults_are_trl_s():
    fields = trl.DPOConfig.__dataclass_fields__
    parameters = inspect.signature(LOSSES["sigmoid"]).parameters
    assert parameters["divergence_alpha"].default == fields["f_alpha_divergence_coef"].default
    assert parameters["divergence"].default == fields["f_divergence_type"].default
    assert inspect.signature(LOSSES["discopop"]).parameters["tau"].default == fields["discopop_tau"].default


def leaf_pairs(dtype, count=8):
    """Sums and token counts of a policy; the sums are leaves."""
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(1, 30, (2, count), generator=generator)
    means = -0.05 - 3 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    sums = (means * tokens).to(dtype).requires_grad_()
    return PairLogps(*sums, *tokens), sums


def their_cpo(loss_type, chosen, rejected, label_smoothing, gamma=0.0, beta=0.7):
    cpo = pytest.importorskip("trl.experimental.cpo")
    accelerator = SimpleNamespace(device="cpu")
    numbers = {"beta": beta, "label_smoothing": label_smoothing, "simpo_gamma": gamma, "alpha": 0.0}
    trainer = SimpleNamespace(loss_type=loss_type, accelerator=accelerator, **numbers)
    losses, _, _ = cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)
    return losses


def assert_same_terms(ours, theirs, sums):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-30)
    assert_same(ours.sum(), theirs.sum(), sums)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpo_is_trl_s(dtype, label_smoothing):
    policy, sums = leaf_pairs(dtype)
    ours = LOSSES["cpo"](policy, policy, beta=0.7, label_smoothing=label_smoothing)
    assert_same_terms(ours, their_cpo("sigmoid", policy.chosen, policy.rejected, label_smoothing), sums)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simpo_is_trl_s(dtype, gamma):
    """TRL is given mean log-probs, and takes gamma / beta off before it multiplies by beta."""
    policy, sums = leaf_pairs(dtype)
    ours = LOSSES["simpo"](policy, policy, beta=2.0, gamma=gamma)
    means = policy.chosen / policy.chosen_tokens, policy.rejected / policy.rejected_tokens
    assert_same_terms(ours, their_cpo("simpo", *means, 0.0, gamma, beta=2.0), sums)


def test_simpo_s_default_is_trl_s():
    cpo = pytest.importorskip("trl.experimental.cpo")
    expected = cpo.CPOConfig.__dataclass_fields__["simpo_gamma"].default
    assert inspect.signature(LOSSES["simpo"]).parameters["gamma"].default == expected


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_orpo_is_trl_s(weight):
    """TRL's odds-ratio term, of means and in float32, is taken off the likelihood term."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    policy, sums = leaf_pairs(torch.float32)
    chosen, rejected = policy.chosen / policy.chosen_tokens, policy.rejected / policy.rejected_tokens
    trainer = SimpleNamespace(beta=weight, accelerator=SimpleNamespace(device="cpu"))
    losses, *_ = orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)
    ours = LOSSES["orpo"](policy, policy, odds_weight=weight)
    assert_same_terms(ours, -chosen - losses, sums)
    assert (losses.abs() > 1e-3).any()
    assert inspect.signature(LOSSES["orpo"]).parameters["odds_weight"].default == (
        orpo.ORPOConfig.__dataclass_fields__["beta"].default
    )
