import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import dpo.lm.head
from dpo.lm.head import Logps, ScoringLinear, chunk_rows, scoring_head_, target_logps
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import head_logps
from tests.dpo.tiny import CONFIGS, LLAMA, tiny_model

POSITIONS, CHANNELS, WORDS = 150, 6, 11


@pytest.fixture(params=[1, 3])
def chunks(request, monkeypatch):
    """All positions at once, or 64, 64 and 22 of them: fewer than 64 are never taken."""
    if request.param == 3:
        monkeypatch.setattr(dpo.lm.head, "CHUNK_BYTES", 1)
    assert -(-POSITIONS // chunk_rows(WORDS, "cpu")) == request.param


def test_chunk_rows_by_hand():
    """64 MiB of float32 are 2^24 numbers: 128 positions of 2^17 words. Of 2^20 words they would be too few, 16."""
    assert [chunk_rows(2**power, "cpu") for power in (10, 17, 18, 20)] == [2**14, 128, 64, 64]


def test_chunk_rows_of_a_gpu_by_hand():
    """2 GiB of float32 are 2^29 numbers: 4,096 positions of 2^17 words, 3,533 of 151,936, rounded down to 27 * 128."""
    found = [chunk_rows(words, "cuda") for words in (2**10, 2**17, 151_936, 2**18, 2**20)]
    assert found == [4096, 4096, 3456, 2048, 2048]


def test_a_gpu_without_room_takes_fewer_rows():
    """A logit takes 10 bytes: 4,096 positions of 2^17 words are 5 GiB, half of what must be free."""
    gib = 2**30
    assert [chunk_rows(2**17, "cuda", gib * free) for free in (10, 9, 5, 4, 0)] == [4096, 2048, 2048, 1024, 64]


@pytest.mark.parametrize("rows", [1, 2, 7, 64, POSITIONS - 1, POSITIONS, 4096])
def test_any_number_of_rows_gives_the_same_numbers(monkeypatch, rows):
    """Also where the last chunk is one row, or the first one all."""
    head, hidden, targets, weights = random_case(torch.float64)
    expected = plain_logps(head, hidden, targets)
    expected_gradients = gradients(expected, weights, head, hidden)
    monkeypatch.setattr(dpo.lm.head, "chunk_rows", lambda *_: rows)
    found = scoring_head_(head)(hidden, targets).logps
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, weights, head, hidden), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def random_case(dtype, bias=True, positions=POSITIONS):
    """A head, hidden states, targets, and weights of the log-probs, so that no two have one gradient."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(CHANNELS, WORDS, bias=bias).to(dtype)
    hidden = torch.randn(positions, CHANNELS, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(WORDS, (positions,), generator=generator)
    weights = torch.randn(positions, generator=generator)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head, hidden, targets, weights


def plain_logps(head, hidden, targets):
    return head(hidden).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def gradients(logps, weights, head, hidden):
    leaves = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return torch.autograd.grad((logps * weights.to(logps.dtype)).sum(), leaves)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_log_softmax_and_gather(chunks, dtype, tolerance, bias):
    """Value, and gradients of hidden states, weight and bias."""
    head, hidden, targets, weights = random_case(dtype, bias)
    expected = plain_logps(head, hidden, targets)
    expected_gradients = gradients(expected, weights, head, hidden)
    found, *asked = scoring_head_(head)(hidden, targets)
    assert asked == [None, None]
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    found_gradients = gradients(found, weights, head, hidden)
    assert len(found_gradients) == 2 + bias
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradcheck(monkeypatch, scale):
    """Five positions in chunks of two, two and one."""
    monkeypatch.setattr(dpo.lm.head, "chunk_rows", lambda *_: 2)
    head, hidden, targets, _ = random_case(torch.float64, positions=5)
    scoring_head_(head)

    def logps(h, weight, bias):
        return dpo.lm.head.LinearHeadLogps.apply(h, weight, bias, targets, False, scale)[0]

    assert torch.autograd.gradcheck(logps, (hidden, head.weight, head.bias))


def test_bfloat16_is_close_to_float32(chunks):
    """Neither logits nor the log-softmax are rounded to 8 bits; gradients are, when they are handed on."""
    head, hidden, targets, weights = random_case(torch.bfloat16)
    exact_head, exact_hidden = deepcopy(head).float(), hidden.detach().float().requires_grad_()
    expected = plain_logps(exact_head, exact_hidden, targets)
    found = scoring_head_(head)(hidden, targets).logps
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5
    expected_gradients = gradients(expected, weights, exact_head, exact_hidden)
    for ours, theirs in zip(gradients(found, weights, head, hidden), expected_gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_bfloat16_is_normalised_in_float32():
    """2,048 equal logits: log(1/2048) = -7.6246, which bfloat16 can only write as -7.625. A chance of 1/2048 agrees."""
    head = nn.Linear(1, 2048, bias=False).bfloat16()
    nn.init.zeros_(head.weight)
    hidden, targets = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([5])
    expected = pytest.approx(-math.log(2048), abs=1e-6)
    for found in (target_logps(head(hidden), targets, True), scoring_head_(head)(hidden, targets, True)):
        assert found.logps.item() == expected
        assert found.agreement.item() == expected


def test_agreement_by_hand():
    """Logits 0, ln 3: chances 1/4 and 3/4, which agree with 1/16 + 9/16 = 5/8."""
    logits = torch.tensor([[0.0, math.log(3)]])
    found = target_logps(logits, torch.tensor([1]), agreement=True)
    assert found.logps.exp().item() == pytest.approx(3 / 4)
    assert found.agreement.exp().item() == pytest.approx(5 / 8)


def test_agreement_is_the_log_of_summed_squares_without_gradient(chunks):
    head, hidden, targets, weights = random_case(torch.float64)
    expected = head(hidden).softmax(-1).square().sum(-1).log()
    logps = plain_logps(head, hidden, targets)
    expected_gradients = gradients(logps, weights, head, hidden)
    for found in (target_logps(head(hidden), targets, True), scoring_head_(deepcopy(head))(hidden, targets, True)):
        torch.testing.assert_close(found.agreement, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.logps, logps, rtol=1e-12, atol=1e-12)
        assert not found.agreement.requires_grad
    scoring_head_(head)
    both = head(hidden, targets, agreement=True)
    for ours, theirs in zip(gradients(both.logps, weights, head, hidden), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_entropy_by_hand():
    """Chances 1/4 and 3/4; a token that cannot be adds nothing."""
    logits = torch.tensor([[0.0, math.log(3), -math.inf]])
    found = target_logps(logits, torch.tensor([1]), entropy=True)
    assert found.entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))


def test_entropy_and_scale_without_gradient_of_entropy(chunks):
    """Logits times a scale, as a temperature asks for; with log-probs and their gradients as before."""
    head, hidden, targets, weights = random_case(torch.float64)
    logits = head(hidden) * 0.7
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    logps = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    expected_gradients = gradients(logps, weights, head, hidden)
    for found in (
        head_logps(head, hidden, targets, entropy=True, scale=0.7),
        head_logps(scoring_head_(head), hidden, targets, entropy=True, scale=0.7),
    ):
        assert found.agreement is None
        assert not found.entropy.requires_grad
        torch.testing.assert_close(found.entropy, entropy, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.logps, logps, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found.logps, weights, head, hidden), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_under_autocast_the_head_is_asked_whole():
    """Hidden states are then narrower than the weight."""
    head, hidden, targets, _ = random_case(torch.float32)
    scoring_head_(head)
    with torch.autocast("cpu", torch.bfloat16):
        found = head_logps(head, hidden.bfloat16(), targets)
    torch.testing.assert_close(found.logps, head(hidden, targets).logps, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("frozen", [["weight"], ["bias"], ["weight", "bias"]])
def test_a_frozen_head_still_hands_on_gradients(chunks, frozen):
    head, hidden, targets, weights = random_case(torch.float64)
    for name in frozen:
        getattr(head, name).requires_grad_(False)
    expected = gradients(plain_logps(head, hidden, targets), weights, head, hidden)
    (scoring_head_(head)(hidden, targets).logps * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, expected[0], rtol=1e-12, atol=1e-12)
    left = [p.grad for p in head.parameters() if p.requires_grad]
    assert len(left) == 2 - len(frozen)
    torch.testing.assert_close(left, list(expected[1:]), rtol=1e-12, atol=1e-12)
    assert all(getattr(head, name).grad is None for name in frozen)


def test_a_head_on_hidden_states_that_do_not_learn():
    head, hidden, targets, weights = random_case(torch.float64)
    expected = gradients(plain_logps(head, hidden, targets), weights, head, hidden)[1:]
    (scoring_head_(head)(hidden.detach(), targets).logps * weights).sum().backward()
    torch.testing.assert_close([head.weight.grad, head.bias.grad], list(expected), rtol=1e-12, atol=1e-12)


def test_no_positions_at_all():
    head, hidden, targets, _ = random_case(torch.float32, positions=0)
    found = scoring_head_(head)(hidden, targets, True)
    assert (found.logps.shape, found.agreement.shape) == ((0,), (0,))
    found.logps.sum().backward()
    assert not head.weight.grad.any()


def test_without_gradients_nothing_is_kept():
    head, hidden, targets, _ = random_case(torch.float32)
    with torch.no_grad():
        found = scoring_head_(head)(hidden, targets)
    assert isinstance(found, Logps)
    assert found.logps.grad_fn is None


# Which heads answer


def test_a_linear_head_is_changed_in_place_and_still_gives_logits():
    head, hidden, *_ = random_case(torch.float32)
    before, names = head(hidden), list(head.state_dict())
    assert scoring_head_(head) is head
    assert type(head) is ScoringLinear
    assert torch.equal(head(hidden), before)
    assert list(head.state_dict()) == names
    copy = deepcopy(head)
    assert type(copy) is ScoringLinear
    assert copy.weight is not head.weight


class OtherLinear(nn.Linear):
    """Someone's own head, whose forward is not ours to replace."""

    def forward(self, input):
        return 30 * torch.tanh(super().forward(input) / 30)


@pytest.mark.parametrize("head", [OtherLinear(2, 3), nn.Sequential(nn.Linear(2, 3)), nn.Bilinear(2, 2, 3), None])
def test_another_kind_of_head_is_left_alone(head):
    kind = type(head)
    assert scoring_head_(head) is head
    assert type(head) is kind


@pytest.mark.parametrize("name", CONFIGS)
def test_the_heads_of_our_models(name):
    """A tied x-transformers head is of its own kind (see `dpo.lm.tied`)."""
    assert isinstance(tiny_model(name).head(), ScoringLinear) == (name != "x-absolute-tied")


def test_the_names_of_weights_are_the_librarys_own():
    fields = {key: value for key, value in LLAMA.items() if key != "model_type"}
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**fields))
    names = list(plain.state_dict())
    assert "lm_head.weight" in names
    assert list(HuggingFaceModel(plain).network.state_dict()) == names


def test_any_dtype_of_logits():
    """float64 stays, bfloat16 becomes float32."""
    logits, targets = torch.randn(4, WORDS, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 10, 3])
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        given = logits.to(dtype)
        found = target_logps(given, targets).logps
        assert found.dtype == expected
        theirs = -F.nll_loss(given.to(expected).log_softmax(-1), targets, reduction="none")
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-6)
