"""The encoder-decoder wrapper."""

import pytest
import torch

from ppo.models import AutoModelForSeq2SeqLMWithValueHead
from tests.ppo.models_tiny import ids, tiny

Seq2Seq = AutoModelForSeq2SeqLMWithValueHead


@pytest.fixture(params=["t5", "bart"])
def base(request):
    return tiny(request.param)


def test_logits_and_values_are_as_long_as_the_decoders_input(base):
    model = Seq2Seq(base).eval()
    source, answer = ids(2, 6), ids(2, 4, seed=1)
    mask = torch.ones_like(source)
    mask[0, 4:] = 0
    logits, loss, values = model(source, attention_mask=mask, decoder_input_ids=answer)
    want = base(source, attention_mask=mask, decoder_input_ids=answer, output_hidden_states=True)
    assert (logits.shape, values.shape, loss) == ((2, 4, 40), (2, 4), None)
    torch.testing.assert_close(logits, want.logits)
    torch.testing.assert_close(values, model.v_head.summary(want.decoder_hidden_states[-1]).squeeze(-1))


def test_labels_give_a_loss(base):
    model, labels = Seq2Seq(base).eval(), ids(2, 4, seed=1)
    logits, loss, values = model(ids(), labels=labels)
    torch.testing.assert_close(loss, base(ids(), labels=labels).loss)
    assert logits.shape[:2] == values.shape == labels.shape


def test_past_key_values_of_the_decoder(base):
    model, answer = Seq2Seq(base).eval(), ids(2, 4, seed=1)
    whole, _, values = model(ids(), decoder_input_ids=answer)
    *_, past = model(ids(), decoder_input_ids=answer[:, :3], return_past_key_values=True)
    later, _, later_values = model(ids(), decoder_input_ids=answer[:, 3:], past_key_values=past)
    torch.testing.assert_close(later, whole[:, 3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(later_values, values[:, 3:], rtol=1e-4, atol=1e-5)


def test_class_attributes():
    assert Seq2Seq.is_encoder_decoder is True
    assert Seq2Seq.transformers_parent_class.__name__ == "AutoModelForSeq2SeqLM"
    assert {"lm_head", "embed_out", "output_projection"} <= set(Seq2Seq.lm_head_namings)


def test_it_comes_back_from_a_folder(base, tmp_path):
    model = Seq2Seq(base).eval()
    model.save_pretrained(tmp_path / "new")
    again = Seq2Seq.from_pretrained(tmp_path / "new").eval()
    for ours, theirs in zip(model(ids(), labels=ids())[:3], again(ids(), labels=ids())[:3], strict=True):
        torch.testing.assert_close(ours, theirs)
    again.load_state_dict(model.state_dict())


def test_generation_is_without_dropout_and_restores_the_mode(base):
    model = Seq2Seq(base).train()
    out = [model.generate(input_ids=ids(), max_new_tokens=6, do_sample=False) for _ in range(3)]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert model.training
    assert model.pretrained_model.training
