"""Which models the class DPO takes: those that return logits, or an object that has them."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, XTransformer

import dpo as package
from dpo import DPO, log_prob_from_model_and_seq
from tests.dpo.tiny import CONFIGS, pair_tensors, sharpen, transformer_wrapper

T5 = {"vocab_size": 23, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


class LogitsOnly(nn.Module):
    """The same model as one that returns a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


def hugging_face(name, kind=AutoModelForCausalLM):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIGS[name])
    return sharpen(kind.from_config(config), seed=0).eval()


def losses(model):
    """Before and after a step of the usual loop."""
    dpo = DPO(model.eval(), pad_id=0)
    preferred, unpreferred, prompt_mask = pair_tensors()
    found = []
    for _ in range(2):
        loss = dpo(preferred, unpreferred, prompt_mask=prompt_mask)
        loss.backward()
        torch.optim.SGD(dpo.parameters(), lr=0.1).step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_of_transformers_is_taken_as_it_is(name):
    model = hugging_face(name)
    dpo = DPO(model)
    assert dpo.policy_model is model
    plain = losses(LogitsOnly(hugging_face(name)))
    assert losses(hugging_face(name)) == plain
    assert plain[1] < plain[0]


def test_of_an_autoregressive_wrapper_the_network_inside_is_asked():
    wrapped = AutoregressiveWrapper(transformer_wrapper("x-rotary"))
    dpo = DPO(wrapped)
    assert dpo.policy_model is wrapped
    assert all(key.startswith("policy_model.net.") for key in dpo.state_dict())
    assert losses(wrapped) == losses(transformer_wrapper("x-rotary"))


@pytest.mark.parametrize("name", ["gpt2", "x-rotary"])
def test_the_log_probs_of_a_sequence_too(name):
    seq = torch.randint(23, (2, 6), generator=torch.Generator().manual_seed(0))
    if name == "gpt2":
        model, table = hugging_face(name), hugging_face(name)(seq[:, :-1]).logits
    else:
        model, table = AutoregressiveWrapper(transformer_wrapper(name)), transformer_wrapper(name)(seq[:, :-1])
    expected = table.log_softmax(-1).gather(-1, seq[:, 1:, None])[..., 0]
    torch.testing.assert_close(log_prob_from_model_and_seq(model, seq), expected)


def test_a_model_without_logits_for_every_token_is_named():
    ids = torch.ones(2, 4, dtype=torch.long)
    prompt_mask = torch.arange(4) < 2
    encoder = TransformerWrapper(
        num_tokens=23, max_seq_len=8, attn_layers=Encoder(dim=16, depth=1, heads=2), return_only_embed=False
    )
    classifier = hugging_face("gpt2", AutoModelForSequenceClassification)
    classifier.config.pad_token_id = 0
    for model, name in (
        (classifier, r"GPT2ForSequenceClassification returns a tensor \(2, 2\)"),
        (hugging_face("gpt2").transformer, "GPT2Model returns a BaseModelOutput"),
        (nn.Sequential(encoder, nn.Flatten()), r"Sequential returns a tensor \(2, 69\)"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.* for ids \(2, 3\); logits \(2, 3, V\)"):
            DPO(model)(ids, ids, prompt_mask=prompt_mask)


def test_an_encoder_decoder_is_refused_by_its_type():
    other = XTransformer(
        dim=16, enc_num_tokens=23, enc_depth=1, enc_heads=2, enc_max_seq_len=8,
        dec_num_tokens=23, dec_depth=1, dec_heads=2, dec_max_seq_len=8,
    )  # fmt: skip
    t5 = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **T5))
    for model, name in ((t5, "T5ForConditionalGeneration"), (other, "XTransformer")):
        with pytest.raises(
            ValueError, match=rf"^model must be a causal language model, .*{name} is an encoder-decoder"
        ):
            DPO(model)


# The listings of the class's own documentation, in own words


def test_training_with_beta_and_pads_from_the_package_alone():
    """A model, the class with all of its keywords, an optimizer over the module, a loop of three steps."""
    network = TransformerWrapper(num_tokens=64, max_seq_len=32, attn_layers=Decoder(dim=32, depth=2, heads=2))
    dpo = package.DPO(model=network, beta=0.1, pad_id=0)
    optimizer = torch.optim.Adam(dpo.parameters(), lr=1e-3)
    preferred, unpreferred = torch.randint(1, 64, (2, 4, 32), generator=torch.Generator().manual_seed(0))
    preferred[:, 28:] = 0
    prompt_mask = torch.zeros(4, 32, dtype=torch.bool)
    prompt_mask[:, :8] = True
    found = []
    for _ in range(3):
        loss = dpo(preferred_seq=preferred, unpreferred_seq=unpreferred, prompt_mask=prompt_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found == sorted(found, reverse=True)
    assert not [p for p in dpo.ref_model.parameters() if p.requires_grad or p.grad is not None]


def test_masks_given_by_hand_replace_those_of_the_pads():
    """With the last two tokens masked, and no `pad_id`: as if they were pads."""
    preferred, unpreferred, prompt_mask = pair_tensors()
    preferred, unpreferred = preferred.clamp(min=1), unpreferred.clamp(min=1)
    mask = torch.ones_like(preferred, dtype=torch.bool)
    mask[:, -2:] = False
    network = transformer_wrapper("x-rotary")
    given = DPO(network)
    given.ref_model = sharpen(transformer_wrapper("x-rotary"), seed=3)
    loss = given(preferred, unpreferred, prompt_mask=prompt_mask, preferred_seq_mask=mask, unpreferred_seq_mask=mask)
    given.pad_id = 0
    padded = [seq.masked_fill(~mask, 0) for seq in (preferred, unpreferred)]
    torch.testing.assert_close(given(*padded, prompt_mask=prompt_mask), loss)


def test_the_helpers_are_those_of_the_package():
    """The steps of the class one by one: mask, log-probs, mean, for a policy that has left its frozen copy."""
    model = transformer_wrapper("x-rotary")
    package.freeze_all_layers_(model)
    assert not any(p.requires_grad for p in model.parameters())
    preferred, _, prompt_mask = pair_tensors()
    mask = package.maybe_and_mask(~prompt_mask, preferred != 0, None)
    logps = package.log_prob_from_model_and_seq(model, preferred)
    means = package.masked_mean(logps, mask)
    assert package.exists(mask) and means.shape == (4,)
    expected = [row[keep].mean() for row, keep in zip(logps, mask[:, 1:], strict=True)]
    torch.testing.assert_close(means, torch.stack(expected))
