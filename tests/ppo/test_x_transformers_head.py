"""The value head on x-transformers."""

from collections import Counter
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper

from dpo.lm.models import load_model
from dpo.lm.x_transformers import XTransformersModel
from ppo.models import XTransformersWithValueHead
from tests.dpo.tiny import sharpen, x_config
from tests.ppo.models_tiny import ids, padded_left, saved, tiny, x_network

NETWORKS = ["absolute", "rotary", "tied"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=NETWORKS)
def model(request):
    return XTransformersWithValueHead(x_network(request.param)).eval()


def test_logits_and_values_come_from_one_pass(model):
    calls = []
    model.pretrained_model.register_forward_hook(lambda *_: calls.append(1))
    logits, loss, values = model(ids())
    assert len(calls) == 1
    assert (logits.shape, logits.dtype, values.shape, loss) == ((2, 6, 40), torch.float32, (2, 6), None)
    torch.testing.assert_close(logits, model.pretrained_model(ids()))
    hidden = model.pretrained_model(ids(), return_embeddings=True)
    torch.testing.assert_close(values, model.v_head.summary(hidden).squeeze(-1))
    assert model.v_head.summary.in_features == model.pretrained_model.attn_layers.dim


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_position(model, side):
    tokens, mask = padded_left(ids(), 4)
    real = slice(4, None)
    if side == "right":
        tokens, mask, real = tokens.roll(-4, 1), mask.roll(-4, 1), slice(0, 6)
    want, got = model(ids()), model(tokens, attention_mask=mask)
    torch.testing.assert_close(got[0][:, real], want[0], **CLOSE)
    torch.testing.assert_close(got[2][:, real], want[2], **CLOSE)
    got[2].sum().backward()
    assert all(torch.isfinite(out).all() for out in (got[0], got[2]))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_librarys_mask_alone_would_be_wrong_for_padding_on_the_left():
    network, (tokens, mask) = x_network("absolute"), padded_left(ids(), 4)
    off = network(tokens, mask=mask.bool())[:, 4:] - network(ids())
    assert off.abs().max() > 1


def test_rows_of_different_lengths_in_one_batch(model):
    tokens = ids(3, 8)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    logits, _, values = model(tokens, attention_mask=mask)
    for row in range(3):
        real = mask[row].bool()
        alone, _, value = model(tokens[row, real][None])
        torch.testing.assert_close(logits[row, real], alone[0], **CLOSE)
        torch.testing.assert_close(values[row, real], value[0], **CLOSE)


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        ([[1, 0, 1, 1], [1, 1, 1, 1]], r"Rows \[0\] of attention_mask are empty or have padding between"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], r"Rows \[1\]"),
        ([[0, 1, 0, 1], [0, 1, 1, 0]], r"Rows \[0\]"),
        ([[1, 1], [1, 1]], r"attention_mask has shape \(2, 2\) and the tokens \(2, 4\)\. Give"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask, fault):
    with pytest.raises(ValueError, match=fault):
        XTransformersWithValueHead(x_network())(ids(2, 4), attention_mask=torch.tensor(mask))


def test_labels_give_the_mean_cross_entropy(model):
    labels = ids()
    labels[0, :3] = -100
    logits, loss, _ = model(ids(), labels=labels)
    want = F.cross_entropy(logits[:, :-1].reshape(-1, 40), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(loss, want)


def test_past_key_values_go_in_and_come_out(model):
    tokens, mask = padded_left(ids(), 2)
    whole, _, values = model(tokens, attention_mask=mask)
    *_, past = model(tokens[:, :5], attention_mask=mask[:, :5], return_past_key_values=True)
    for at in range(5, 8):
        later, _, value, past = model(
            tokens[:, at : at + 1],
            past_key_values=past,
            attention_mask=mask[:, : at + 1],
            return_past_key_values=True,
        )
        torch.testing.assert_close(later[:, 0], whole[:, at], **CLOSE)
        torch.testing.assert_close(value[:, 0], values[:, at], **CLOSE)
    with pytest.raises(ValueError, match=r"input_ids is \(2, 3\); with past_key_values it has to be \(B, 1\)"):
        model(tokens[:, :3], past_key_values=past)


def test_a_bfloat16_network_gives_float32_logits_and_keeps_a_float32_head():
    model = XTransformersWithValueHead(x_network().bfloat16())
    logits, _, values = model(ids())
    assert (logits.dtype, values.dtype, model.v_head.summary.weight.dtype) == (torch.float32,) * 3


def test_a_copy_has_a_tied_head_of_its_own():
    model = XTransformersWithValueHead(x_network("tied")).eval()
    copy = deepcopy(model)
    want = copy(ids())[0]
    sharpen(model, seed=3)
    torch.testing.assert_close(copy(ids())[0], want, rtol=0, atol=0)


def test_what_a_trainer_asks():
    model = XTransformersWithValueHead(x_network(), v_head_init_strategy="normal")
    assert (model.config.hidden_size, model.config.vocab_size, model.config.is_encoder_decoder) == (16, 40, False)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (None, None)
    assert model.config.to_dict()["model_type"] == "x-transformers"
    assert (model.is_encoder_decoder, model.is_peft_model, model.is_sequential_parallel) == (False, False, False)
    assert isinstance(model.v_head.dropout, torch.nn.Identity)
    assert model.v_head.summary.bias.item() == 0
    model.load_state_dict(model.state_dict())


# Generation


def test_greedy_answers_are_those_of_the_prompt_alone(model):
    tokens, mask = padded_left(ids(), 3)
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=7, do_sample=False)
    assert (out.shape, out.dtype) == ((2, 3 + 6 + 7), torch.long)
    assert torch.equal(out[:, :9], tokens)
    for row in range(2):
        alone = ids()[row : row + 1]
        for _ in range(7):
            alone = torch.cat([alone, model(alone)[0][:, -1:].argmax(-1)], dim=1)
        assert torch.equal(out[row, 3:], alone[0])


def test_networks_that_keep_no_cache_answer_alike():
    model = XTransformersWithValueHead(x_network(num_memory_tokens=2)).eval()
    assert not model.pretrained_model.can_cache_kv
    out = model.generate(ids(), max_new_tokens=3, do_sample=False)
    torch.testing.assert_close(out[:, -1], model(out[:, :-1])[0][:, -1].argmax(-1))


def test_samples_follow_the_networks_own_distribution():
    model, prompt = XTransformersWithValueHead(x_network()).eval(), ids(1, 5)
    with torch.no_grad():
        for parameter in model.pretrained_model.parameters():
            parameter.mul_(0.5)  # flat enough that many tokens are likely
    generator = torch.Generator().manual_seed(0)
    first = model.generate(prompt.expand(4000, -1), max_new_tokens=1, generator=generator)[:, -1]
    chances = model(prompt)[0][0, -1].softmax(-1)
    seen = torch.bincount(first, minlength=40) / 4000
    assert (seen - chances).abs().sum() < 0.1
    library = AutoregressiveWrapper(model.pretrained_model)
    filtered = library.generate(prompt.expand(4000, -1), 1)
    assert len(filtered.unique()) <= 4 < len(first.unique())  # a tenth of 40


def test_filters_where_asked_for():
    model, prompt = XTransformersWithValueHead(x_network()).eval(), ids(1, 5).expand(500, -1)
    logits = model(prompt[:1])[0][0, -1]
    three = model.generate(prompt, max_new_tokens=1, top_k=3, temperature=5.0)[:, -1]
    assert set(three.tolist()) == set(logits.topk(3).indices.tolist())
    one = model.generate(prompt, max_new_tokens=1, top_p=1e-6)[:, -1]
    assert set(one.tolist()) == {logits.argmax().item()}
    chances, order = (logits / 3).softmax(-1).sort(descending=True)
    kept = order[: int((chances.cumsum(0) < 0.6).sum()) + 1]
    some = model.generate(prompt, max_new_tokens=1, top_p=0.6, temperature=3.0)[:, -1]
    assert set(some.tolist()) <= set(kept.tolist())
    cold = model.generate(prompt, max_new_tokens=1, temperature=1e-3)[:, -1]
    assert Counter(cold.tolist()) == {logits.argmax().item(): 500}


def test_a_generator_makes_samples_again(model):
    drawn = [model.generate(ids(), max_new_tokens=5, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], model.generate(ids(), max_new_tokens=5, do_sample=False))


def test_only_new_tokens_end_a_row_and_pads_follow(model):
    free = model.generate(ids(), max_new_tokens=6, do_sample=False)
    end = free[0, 8].item()  # the third new token of row 0
    prompt = ids()
    prompt[1, 2] = end  # in the middle of a prompt it ends nothing
    free = model.generate(prompt, max_new_tokens=6, do_sample=False)
    out = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=[end, 39], pad_token_id=0)
    for row in range(2):
        new = free[row, 6:].tolist()
        length = min([new.index(e) + 1 for e in (end, 39) if e in new], default=6)
        assert out[row, 6 : 6 + length].tolist() == new[:length]
        assert out[row, 6 + length :].tolist() == [0] * (out.shape[1] - 6 - length)
    assert (out[1, 6:] != 0).any()


def test_it_stops_when_every_row_is_over(model):
    first = model.generate(ids(1, 6), max_new_tokens=1, do_sample=False)[0, -1].item()
    out = model.generate(ids(1, 6), max_new_tokens=20, do_sample=False, eos_token_id=first, pad_token_id=0)
    assert out.shape == (1, 7)


def test_generation_is_without_dropout_and_restores_every_mode():
    layers = Decoder(dim=16, depth=2, heads=2, attn_dropout=0.5, ff_dropout=0.5)
    network = TransformerWrapper(num_tokens=40, max_seq_len=64, attn_layers=layers)
    model = XTransformersWithValueHead(sharpen(network, 0), summary_dropout_prob=0.5).train()
    network.attn_layers.layers[0].eval()
    before = [part.training for part in model.modules()]
    out = [model.generate(ids(), max_new_tokens=8, do_sample=False) for _ in range(3)]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert [part.training for part in model.modules()] == before


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0 and has to be at least 1"),
        ({"max_new_tokens": 59}, r"Prompts of 6 tokens and max_new_tokens = 59 make 65.*max_seq_len = 64\. Ask"),
        ({"eos_token_id": 2}, r"eos_token_id is 2 and pad_token_id is None.*Give pad_token_id"),
        ({"temperature": 0.0}, r"temperature is 0\.0 and has to be above 0; do_sample=False"),
        ({"top_k": -1}, "top_k is -1 and has to be 0"),
        ({"top_p": 0.0}, r"top_p is 0\.0 and has to be above 0"),
        ({"attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0]])}, r"Prompts \[1\] end in padding.*on the left"),
    ],
)
def test_generation_that_cannot_be_is_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        XTransformersWithValueHead(x_network()).generate(ids(), **options)


def test_rotary_networks_go_beyond_max_seq_len():
    model = XTransformersWithValueHead(x_network("rotary")).eval()
    assert model.generate(ids(), max_new_tokens=70, do_sample=False).shape == (2, 76)


def test_unknown_keywords_are_an_error():
    model = XTransformersWithValueHead(x_network())
    with pytest.raises(TypeError, match="num_beams"):
        model.generate(ids(), num_beams=2)
    with pytest.raises(TypeError, match="position_ids"):
        model(ids(), position_ids=ids())


# Construction and folders


def wrapper(layers=None, **options):
    layers = layers or Decoder(dim=16, depth=1, heads=2)
    return TransformerWrapper(num_tokens=40, max_seq_len=64, attn_layers=layers, **options)


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        (lambda: wrapper(Encoder(dim=16, depth=1, heads=2)), "has an encoder"),
        (lambda: wrapper(return_only_embed=True), "has return_only_embed"),
        (lambda: wrapper(num_output_heads=2), "has several output heads"),
        (lambda: wrapper(mixture_of_softmax=True), "has mixture_of_softmax"),
        (lambda: wrapper(use_cls_token=True), "has a cls token"),
        (lambda: wrapper(average_pool_embed=True), "has average_pool_embed"),
        (lambda: wrapper(recycling=True), "has recycling"),
        (lambda: AutoregressiveWrapper(x_network()), "AutoregressiveWrapper is none. Give the inner network"),
        (lambda: tiny("gpt2"), "GPT2LMHeadModel is none"),
    ],
)
def test_networks_without_one_state_and_one_output_a_position_are_refused(network, fault):
    with pytest.raises(ValueError, match=fault):
        XTransformersWithValueHead(network())


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_round_trip(tmp_path, positions, tied):
    description = x_config(positions, tie_embedding=tied)
    network = sharpen(XTransformersModel.random(description, seed=0), 0).network
    model = XTransformersWithValueHead(network, v_head_init_strategy="normal", description=description).eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    again = XTransformersWithValueHead.from_pretrained(tmp_path / "new" / "folder").eval()
    tokens = ids() % 23
    for one, other in zip(model(tokens)[::2], again(tokens)[::2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    plain = load_model(tmp_path / "new" / "folder", torch.float32).eval()  # for the rest of the project
    torch.testing.assert_close(plain(tokens), model(tokens)[0])
    again.save_pretrained(str(tmp_path / "again"), state_dict=model.state_dict())
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "new/folder/config.json").read_text()


def test_a_folder_without_a_head_gives_a_new_one_and_says_so(tmp_path):
    description = x_config()
    network = XTransformersModel.random(description, seed=0).network
    XTransformersWithValueHead(network, description=description).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.warns(UserWarning, match="has no value head saved with it"):
        XTransformersWithValueHead.from_pretrained(tmp_path)


def test_what_cannot_be_saved_or_loaded_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"came without its description.*Give description="):
        XTransformersWithValueHead(x_network()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a model of type 'gpt2' and not x-transformers\. Load it with AutoModel"):
        XTransformersWithValueHead.from_pretrained(saved("gpt2", tmp_path))


def test_a_description_that_lacks_something_is_refused_at_once():
    description = {"num_tokens": 24, "max_seq_len": 64, "dim": 16, "depth": 2, "heads": 2}
    with pytest.raises(ValueError, match="description lacks positions; it has num_tokens, max_seq_len, dim"):
        XTransformersWithValueHead(x_network("absolute"), description=description)
