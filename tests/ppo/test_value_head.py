"""The value head: width, dropout, dtype, initialisation, loading."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ppo.models import ValueHead
from ppo.models.value_head import hidden_size
from tests.ppo.models_tiny import MODELS


@pytest.mark.parametrize(("name", "width"), [("gpt2", 16), ("llama", 16), ("opt", 8), ("t5", 16), ("bart", 16)])
def test_it_is_as_wide_as_what_the_output_head_reads(name, width):
    assert hidden_size(MODELS[name][1]) == width


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (SimpleNamespace(word_embed_proj_dim=3, hidden_size=5), 3),
        (SimpleNamespace(hidden_size=5, text_config=SimpleNamespace(hidden_size=7)), 5),
        (SimpleNamespace(text_config=SimpleNamespace(hidden_size=7), decoder=SimpleNamespace(hidden_size=9)), 7),
        (SimpleNamespace(decoder=SimpleNamespace(hidden_size=9)), 9),
        (SimpleNamespace(hidden_size=None, decoder=SimpleNamespace(word_embed_proj_dim=4, hidden_size=9)), 4),
    ],
)
def test_the_first_width_that_is_there_counts(config, width):
    assert ValueHead(config).summary.in_features == width


def test_a_configuration_without_a_width_is_refused():
    with pytest.raises(ValueError, match=r"SimpleNamespace tells no hidden size.*Set config\.hidden_size"):
        ValueHead(SimpleNamespace(n_embd=4))


@pytest.mark.parametrize(
    ("in_config", "keywords", "chance"),
    [
        ({}, {}, 0.1),
        ({}, {"summary_dropout_prob": 0.3}, 0.3),
        ({}, {"summary_dropout_prob": 0.0}, None),
        ({}, {"summary_dropout_prob": None}, None),
        ({"summary_dropout_prob": 0.2}, {}, 0.2),
        ({"summary_dropout_prob": 0.2}, {"summary_dropout_prob": 0.3}, 0.2),
        ({"summary_dropout_prob": 0.0}, {"summary_dropout_prob": 0.3}, None),
        ({"summary_dropout_prob": None}, {"summary_dropout_prob": 0.3}, None),
    ],
)
def test_dropout_is_the_configurations_then_the_keywords_then_a_tenth(in_config, keywords, chance):
    head = ValueHead(SimpleNamespace(hidden_size=4, **in_config), **keywords)
    if chance is None:
        assert isinstance(head.dropout, nn.Identity)
    else:
        assert isinstance(head.dropout, nn.Dropout)
        assert head.dropout.p == chance


@pytest.mark.parametrize("chance", [1.0, 1.5, -0.1])
def test_a_dropout_that_is_no_probability_is_refused(chance):
    with pytest.raises(ValueError, match=rf"summary_dropout_prob is {chance}.*Change it"):
        ValueHead(SimpleNamespace(hidden_size=4), summary_dropout_prob=chance)


def test_it_is_float32_whatever_the_default_and_the_input():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        head = ValueHead(SimpleNamespace(hidden_size=4))
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    values = head.eval()(torch.ones(2, 3, 4, dtype=torch.bfloat16))
    assert (values.shape, values.dtype) == ((2, 3, 1), torch.float32)


def test_initialisations():
    head = ValueHead(SimpleNamespace(hidden_size=5000))
    left = {name: value.clone() for name, value in head.state_dict().items()}
    head.init_weights_(None, 0.2)
    assert all(torch.equal(value, left[name]) for name, value in head.state_dict().items())
    assert head.summary.bias.item() != 0
    head.init_weights_("normal", 0.5)
    assert head.summary.bias.item() == 0
    assert head.summary.weight.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("strategy", ["Normal", "zeros", ""])
def test_another_initialisation_is_refused_and_the_choices_named(strategy):
    with pytest.raises(ValueError, match=f"v_head_init_strategy is '{strategy}'.*None.*\"normal\""):
        ValueHead(SimpleNamespace(hidden_size=4)).init_weights_(strategy, 0.2)


@pytest.mark.parametrize(
    "saved",
    [
        {"summary.weight": torch.zeros(1, 4)},
        {"summary.weight": torch.zeros(1, 5), "summary.bias": torch.zeros(1)},
        {"weight": torch.zeros(1, 4), "summary.weight": torch.zeros(1, 4), "summary.bias": torch.zeros(1)},
    ],
)
def test_a_saved_head_that_does_not_fit_is_refused(saved):
    with pytest.raises(ValueError, match=r"The saved value head is .*summary\.weight .*Load it with the base model"):
        ValueHead(SimpleNamespace(hidden_size=4)).fill_(saved)
