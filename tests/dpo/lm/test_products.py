"""The head of a model in bfloat16 or float16: its inputs are rounded, what it makes of them is not."""

import pytest
import torch
from torch import nn

import dpo.lm.products
from dpo.lm.head import scoring_head_
from dpo.lm.logprobs import LogprobModel
from dpo.lm.products import add_weight_gradient_, as_factor, hidden_gradient_, logits_of
from dpo.lm.tied import TiedHead
from tests.dpo.lm.test_logprobs import SEQUENCES
from tests.dpo.tiny import tiny_model

POSITIONS, CHANNELS, WORDS = 90, 48, 500
NARROW = (torch.bfloat16, torch.float16)


class WideMatmul:
    """`torch.mm` and `torch.addmm` as CUDA has them: narrow matrices in, their float32 sums out."""

    def __init__(self):
        self.asked = []

    def mm(self, left, right, *, out_dtype):
        self._check("mm", left, right, out_dtype)
        return left.float() @ right.float()

    def addmm(self, total, left, right, *, out_dtype, out):
        self._check("addmm", left, right, out_dtype)
        assert out is total
        assert total.dtype == torch.float32
        return out.add_(left.float() @ right.float())

    def _check(self, name, left, right, out_dtype):
        assert left.dtype == right.dtype
        assert left.dtype in NARROW
        assert out_dtype == torch.float32
        self.asked.append(name)


@pytest.fixture(params=["cpu", "blocks", "cuda"])
def way(request, monkeypatch):
    """A float32 matmul of the whole weight, or of 7 words at a time (500 is no multiple); or a GPU's own, staged."""
    matmul = WideMatmul()
    if request.param == "blocks":
        monkeypatch.setattr(dpo.lm.products, "BLOCK_NUMBERS", 7 * CHANNELS + 1)
    if request.param == "cuda":
        monkeypatch.setattr(dpo.lm.products, "WIDE_OUTPUT", ("cpu",))
        monkeypatch.setattr(torch, "mm", matmul.mm)
        monkeypatch.setattr(torch, "addmm", matmul.addmm)
    yield request.param
    assert set(matmul.asked) == ({"mm", "addmm"} if request.param == "cuda" else set())


def case(dtype, bias):
    """A head with logits of a trained model's size, a standard deviation of 8."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(CHANNELS, WORDS, bias=bias).to(dtype)
    hidden = torch.randn(POSITIONS, CHANNELS, generator=generator).to(dtype).requires_grad_()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(8 / CHANNELS**0.5 * torch.randn(parameter.shape, generator=generator))
    targets = torch.randint(WORDS, (POSITIONS,), generator=generator)
    weights = torch.randn(POSITIONS, generator=generator)
    return head, hidden, targets, weights


def exact(head, hidden, targets, weights):
    """In float64 from the same narrow inputs: the log-probs, and the gradients of hidden states, weight and bias."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in (hidden, *head.parameters())]
    logps = nn.functional.linear(*leaves).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return logps.detach(), torch.autograd.grad((logps * weights).sum(), leaves)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_log_prob_is_that_of_unrounded_logits(way, dtype, bias):
    """Within 1e-5 nats; from rounded logits it would be off by more than 5e-3 somewhere, even in float16."""
    head, hidden, targets, weights = case(dtype, bias)
    expected, expected_gradients = exact(head, hidden, targets, weights)
    rounded = head(hidden).double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert (rounded - expected).abs().max() > 5e-3
    found = scoring_head_(head)(hidden, targets).logps
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5
    gradients = torch.autograd.grad((found * weights).sum(), [hidden, *head.parameters()])
    # A gradient is rounded once when it is handed on; a GPU also rounds that of the logits, as before every matmul.
    tolerance = (2 if way == "cuda" else 1) * torch.finfo(dtype).eps / 2
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_all_ways_add_to_the_weights_gradient_in_float32(way):
    """Two chunks: the second is added to the first, and neither is rounded to bfloat16."""
    head, hidden, *_ = case(torch.bfloat16, False)
    weight, hidden = head.weight.detach(), hidden.detach()
    total, expected = torch.zeros(WORDS, CHANNELS), torch.zeros(WORDS, CHANNELS, dtype=torch.float64)
    for rows in (slice(0, 40), slice(40, None)):
        of_logits = logits_of(hidden[rows], weight, None).softmax(-1).bfloat16().float()
        factor = as_factor(of_logits, weight)
        add_weight_gradient_(total, factor, hidden[rows])
        expected += of_logits.double().t() @ hidden[rows].double()
        out = torch.empty_like(hidden[rows])
        hidden_gradient_(out, factor, weight)
        torch.testing.assert_close(out.double(), of_logits.double() @ weight.double(), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_tied_head_rounds_no_logits_either():
    """That of x-transformers is no module and scales its logits."""
    model = tiny_model("x-absolute-tied").bfloat16()
    ours = LogprobModel(model)
    batch = ours.collate(SEQUENCES, 0)
    head = model.head()
    assert isinstance(head, TiedHead)
    hidden = model.hidden(batch).flatten(0, 1)[batch.sources].detach()
    wrapper = head.wrapper
    leaves = [part.detach().double().requires_grad_() for part in (hidden, wrapper.token_emb.emb.weight)]
    logits = leaves[0] @ leaves[1].t() * wrapper.tie_embedding_scale
    expected = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    found = ours(batch).logps
    assert (found - expected[batch.scored]).abs().max() <= 1e-5
    given = hidden.clone().requires_grad_()
    gradients = torch.autograd.grad(head(given, batch.targets).logps.sum(), [given, wrapper.token_emb.emb.weight])
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert (ours - theirs).norm() <= 2**-8 * theirs.norm()


def test_a_tied_head_in_float32_answers_with_whole_logits():
    """Old caches hold these very bits."""
    model = tiny_model("x-absolute-tied")
    ours = LogprobModel(model)
    batch = ours.collate(SEQUENCES, 0)
    hidden = model.hidden(batch).flatten(0, 1).index_select(0, batch.sources)
    whole = (hidden @ model.network.token_emb.emb.weight.t()) * model.network.tie_embedding_scale
    expected = -nn.functional.cross_entropy(whole, batch.targets, reduction="none")
    assert torch.equal(ours(batch).logps, expected[batch.scored])


def test_float32_and_float64_are_multiplied_as_a_linear_layer_does():
    for dtype in (torch.float32, torch.float64):
        head, hidden, *_ = case(dtype, True)
        assert torch.equal(logits_of(hidden, head.weight, head.bias), head(hidden))
