"""The helpers that dpo.dpo keeps under the names that x-transformers gave them."""

import math

import pytest
import torch
from torch import nn

from dpo.dpo import exists, freeze_all_layers_, log_prob_from_model_and_seq, masked_mean, maybe_and_mask
from tests.dpo.tiny import tiny_model

T, F = True, False
LOGPS = torch.tensor([[-1.0, -2.0, -6.0], [-4.0, -8.0, -16.0]])


def test_exists():
    assert [exists(value) for value in (None, 0, False, torch.zeros(1))] == [False, True, True, True]


def test_freeze_all_layers():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    freeze_all_layers_(network)
    assert [p.requires_grad for p in network.parameters()] == [False] * 4


def test_mean_without_a_mask():
    """-9/3 and -28/3."""
    torch.testing.assert_close(masked_mean(LOGPS), torch.tensor([-3.0, -28 / 3]))


def test_mean_with_a_mask_of_the_targets():
    """(-2 - 6)/2 and -4."""
    mask = torch.tensor([[F, T, T], [T, F, F]])
    assert masked_mean(LOGPS, mask).tolist() == [-4.0, -4.0]


def test_mean_with_a_mask_of_the_full_sequence_drops_its_first_entry():
    """The same targets, and a first token that nothing predicts, whatever the mask says of it."""
    mask = torch.tensor([[T, F, T, T], [F, T, F, F]])
    assert masked_mean(LOGPS, mask).tolist() == [-4.0, -4.0]


def test_mean_of_nothing_is_zero_and_differentiable():
    logps = LOGPS.clone().requires_grad_()
    mean = masked_mean(logps, torch.tensor([[F, F, F], [T, T, F]]))
    mean.sum().backward()
    assert mean.tolist() == [0.0, -6.0]
    assert logps.grad.tolist() == [[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]]


def test_what_is_masked_may_be_infinite():
    logps = torch.tensor([[-1.0, -math.inf, -3.0]])
    assert masked_mean(logps, torch.tensor([[T, F, T]])).tolist() == [-2.0]


def test_and_of_masks():
    a, b, c = torch.tensor([T, T, T, F]), torch.tensor([T, F, T, T]), torch.tensor([T, T, F, T])
    assert maybe_and_mask(a, None, b, c).tolist() == [T, F, F, F]
    assert maybe_and_mask(None, b) is b
    assert maybe_and_mask(None, None) is None
    assert maybe_and_mask() is None
    assert a.tolist() == [T, T, T, F]  # not changed in place


@pytest.mark.parametrize("name", ["x-rotary", "x-absolute-tied"])
def test_log_prob_of_every_token_but_the_first(name):
    """By a gather written out: entry j is the log-softmax of the logits at j, at the token of j + 1."""
    network = tiny_model(name).network
    seq = torch.randint(23, (3, 7), generator=torch.Generator().manual_seed(0))
    log_probs = log_prob_from_model_and_seq(network, seq)
    assert log_probs.shape == (3, 6)
    table = network(seq[:, :-1]).log_softmax(-1)
    expected = [[table[row, j, seq[row, j + 1]].item() for j in range(6)] for row in range(3)]
    torch.testing.assert_close(log_probs, torch.tensor(expected), atol=1e-6, rtol=0)


def test_log_probs_of_a_half_precision_model_are_taken_in_float32():
    """All-zero logits over 2,048 tokens: -ln 2048, which bfloat16 cannot write."""
    table = nn.Embedding(2048, 2048, dtype=torch.bfloat16)
    nn.init.zeros_(table.weight)
    log_probs = log_prob_from_model_and_seq(table, torch.tensor([[1, 2]]))
    assert log_probs.dtype == torch.float32
    assert log_probs.item() == pytest.approx(-math.log(2048), abs=1e-6)
