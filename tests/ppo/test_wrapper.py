"""The causal wrapper in memory: construction, forward, generation, devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ppo.models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PreTrainedModelWrapper
from ppo.models.devices import first_device, lm_head_device
from tests.ppo.models_tiny import ids, padded_left, tiny

Causal = AutoModelForCausalLMWithValueHead
DECODERS = ["gpt2", "llama", "neox", "opt"]


def in_train_mode(module):
    return {name for name, part in module.named_modules() if part.training}


def test_a_wrapper_is_in_the_mode_of_its_model():
    assert not any(part.training for part in Causal(tiny("gpt2")).modules())
    half = tiny("gpt2").train()
    half.transformer.h[0].eval()
    model = Causal(half)
    assert model.training
    assert model.v_head.dropout.training
    assert not half.transformer.h[0].training


@pytest.mark.parametrize("name", DECODERS)
def test_a_directly_built_object_answers_with_logits_loss_and_values(name):
    base, tokens = tiny(name), ids()
    model = Causal(base).eval()
    logits, loss, values = model(tokens)
    assert (logits.shape, values.shape, loss) == ((2, 6, 40), (2, 6), None)
    torch.testing.assert_close(logits, base(tokens).logits)
    hidden = base(tokens, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(values, model.v_head.summary(hidden).squeeze(-1))


@pytest.mark.parametrize("name", DECODERS)
def test_values_are_of_the_hidden_state_that_the_output_head_reads(name):
    base = tiny(name)
    hidden = Causal(base)._last_hidden_state(base(ids(), output_hidden_states=True))
    torch.testing.assert_close(base.get_output_embeddings()(hidden), base(ids()).logits)


def test_other_keywords_reach_the_base_model():
    base, (tokens, mask) = tiny("gpt2"), padded_left(ids(), 3)
    model = Causal(base).eval()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, loss, _ = model(tokens, attention_mask=mask, position_ids=positions, labels=tokens)
    torch.testing.assert_close(logits[:, 3:], base(ids()).logits)
    torch.testing.assert_close(loss, base(tokens, attention_mask=mask, position_ids=positions, labels=tokens).loss)
    embedded = model(inputs_embeds=base.transformer.wte(ids()))[0]
    torch.testing.assert_close(embedded, base(ids()).logits)


def test_gradients_reach_trunk_and_head_through_the_values():
    model = Causal(tiny("gpt2"))
    model(ids())[2].sum().backward()
    assert model.v_head.summary.weight.grad.abs().sum() > 0
    assert model.pretrained_model.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0


def test_past_key_values_go_in_and_come_out():
    model = Causal(tiny("gpt2")).eval()
    whole, _, values = model(ids())
    *_, past = model(ids()[:, :4], return_past_key_values=True)
    later, _, later_values, past = model(ids()[:, 4:], past_key_values=past, return_past_key_values=True)
    torch.testing.assert_close(later, whole[:, 4:])
    torch.testing.assert_close(later_values, values[:, 4:])
    assert past.get_seq_length() == 6
    assert len(model(ids())) == 3


def test_a_bfloat16_base_gives_float32_logits_and_keeps_a_float32_head():
    model = Causal(tiny("llama").bfloat16()).eval()
    logits, _, values = model(ids())
    assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)
    assert model.v_head.summary.weight.dtype == torch.float32
    assert Causal(tiny("llama")).bfloat16()(ids())[2].dtype == torch.bfloat16  # the head's own


def test_class_attributes():
    assert Causal.transformers_parent_class.__name__ == "AutoModelForCausalLM"
    assert {"lm_head", "embed_out"} <= set(Causal.lm_head_namings)
    assert Causal.is_encoder_decoder is False
    assert Causal.supported_args == ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")
    assert (Causal.supported_modules, Causal.supported_rm_modules) == (("v_head",), ("score",))
    model = Causal(tiny("gpt2"))
    assert model.config is model.pretrained_model.config
    for flag in ("is_peft_model", "is_sequential_parallel", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        assert getattr(model, flag) is False


def test_the_flags_of_a_quantised_model_are_kept():
    base = tiny("gpt2")
    base.is_loaded_in_8bit = True
    assert Causal(base).is_loaded_in_8bit is True


def test_the_three_arguments_of_the_head():
    model = Causal(tiny("gpt2"), summary_dropout_prob=0.3, v_head_init_strategy="normal", v_head_initializer_range=0.0)
    assert model.v_head.dropout.p == 0.3
    assert model.v_head.summary.weight.abs().sum() == model.v_head.summary.bias.abs().sum() == 0
    with pytest.raises(ValueError, match="v_head_init_strategy is 'xavier'"):
        Causal(tiny("gpt2"), v_head_init_strategy="xavier")
    with pytest.raises(TypeError, match="v_head_strategy"):
        Causal(tiny("gpt2"), v_head_strategy="normal")


def test_a_model_without_language_model_head_is_refused():
    with pytest.raises(ValueError, match=r"BertModel has no language-model head.*lm_head or embed_out.*Load the model"):
        Causal(tiny("bert"))


@pytest.mark.parametrize("namings", [("lm_head",), ("no_such",)])
def test_either_output_embeddings_or_a_name_make_a_language_model(namings, monkeypatch):
    base = tiny("gpt2")
    monkeypatch.setattr(Causal, "lm_head_namings", namings)
    Causal(base)
    monkeypatch.setattr(type(base), "get_output_embeddings", lambda self: None)
    if namings == ("lm_head",):
        Causal(base)
    else:
        with pytest.raises(ValueError, match=r"no language-model head.*no_such"):
            Causal(base)


@pytest.mark.parametrize(("kind", "name"), [(Causal, "t5"), (AutoModelForSeq2SeqLMWithValueHead, "gpt2")])
def test_a_model_of_the_other_kind_is_refused(kind, name):
    with pytest.raises(ValueError, match=r"is_encoder_decoder = (True|False).*Use AutoModelFor"):
        kind(tiny(name))


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), {"a": 1}])
def test_what_is_no_model_is_refused(thing):
    for build in (Causal, Causal.from_pretrained):
        with pytest.raises(ValueError, match=rf"{type(thing).__name__} is none\. Give a PreTrainedModel"):
            build(thing)


def test_the_base_class_loads_nothing():
    with pytest.raises(TypeError, match=r"PreTrainedModelWrapper does not know what to load.*subclasses"):
        PreTrainedModelWrapper.from_pretrained("gpt2")


def test_generation_is_without_dropout_and_restores_every_mode():
    model = Causal(tiny("gpt2")).train()
    model.pretrained_model.transformer.h[1].eval()  # somebody froze a part
    before = in_train_mode(model)
    out = [model.generate(ids(), max_new_tokens=8, do_sample=False, pad_token_id=0) for _ in range(4)]
    assert all(torch.equal(out[0], other) for other in out)
    assert in_train_mode(model) == before
    with pytest.raises((ValueError, TypeError)):
        model.generate(ids(), max_new_tokens=4, no_such_argument=1)
    assert in_train_mode(model) == before
    model.eval()
    assert torch.equal(out[0], model.generate(ids(), max_new_tokens=8, do_sample=False, pad_token_id=0))
    assert not in_train_mode(model)


def test_gradient_checkpointing_changes_nothing_but_memory():
    model = Causal(tiny("llama"), summary_dropout_prob=0)
    model.train()(ids())[2].sum().backward()
    want = model.pretrained_model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model.pretrained_model.get_input_embeddings().requires_grad_(False)  # reentrant checkpoints would find no gradient
    model.gradient_checkpointing_enable()
    assert model.pretrained_model.is_gradient_checkpointing
    model(ids())[2].sum().backward()
    torch.testing.assert_close(model.pretrained_model.model.layers[0].mlp.up_proj.weight.grad, want)
    model.gradient_checkpointing_disable()
    assert not model.pretrained_model.is_gradient_checkpointing


def test_inputs_for_generation_are_the_base_models():
    model = Causal(tiny("gpt2"))
    prepared = model.prepare_inputs_for_generation(ids(), attention_mask=torch.ones(2, 6))
    assert torch.equal(prepared["input_ids"], ids())


def test_on_one_device_the_head_is_there():
    base = tiny("gpt2")
    base.hf_device_map = {"": "cpu"}
    model = Causal(base)
    assert model.is_sequential_parallel is False
    assert model(ids())[2].device.type == "cpu"
    base.hf_device_map = {"": "disk"}
    with pytest.raises(ValueError, match=r"puts '' on the CPU or the disk"):
        Causal(base)


def test_over_several_devices_everything_comes_out_on_the_first():
    base = tiny("gpt2")
    base.hf_device_map = {"transformer.wte": "meta", "transformer.h": "cuda:1", "lm_head": "cuda:1"}  # no GPU needed
    model = Causal(base).eval()
    assert model.is_sequential_parallel is True
    logits, loss, values = model(ids(), labels=ids())
    assert {t.device.type for t in (logits, loss, values, model.v_head.summary.weight)} == {"meta"}


def test_a_seq2seq_model_over_several_devices_answers_where_its_output_head_is():
    base = tiny("t5")
    base.hf_device_map = {"shared": "cuda:0", "encoder": "cuda:0", "decoder": "cuda:1", "lm_head": "meta"}
    model = AutoModelForSeq2SeqLMWithValueHead(base)
    assert model.v_head.summary.weight.device.type == "meta"


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_layers_are_refused(place):
    base = tiny("gpt2")
    base.hf_device_map = {"transformer": "cuda:0", "lm_head": place}
    with pytest.raises(ValueError, match=r"puts 'lm_head' on the CPU or the disk.*Give a device_map without offload"):
        Causal(base)


def test_devices_of_a_map():
    spread = {"model.embed": "cuda:0", "model.layers.1": "cuda:1", "lm_head": "cuda:2", "more": "cuda:3"}
    assert first_device(spread) == torch.device("cuda:0")
    assert lm_head_device(spread, ("lm_head",)) == torch.device("cuda:2")
    assert lm_head_device(spread, ("embed_out",)) == torch.device("cuda:3")


WITHOUT_PEFT = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name == "peft" else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Hiding, sys.meta_path)
from ppo.models import AutoModelForCausalLMWithValueHead as Causal, create_reference_model
from tests.ppo.models_tiny import ids, saved, tiny

model = Causal.from_pretrained(saved("gpt2", sys.argv[1]), attn_implementation="eager")
assert model(ids())[2].shape == (2, 6) and not model.is_peft_model
create_reference_model(model)
try:
    Causal.from_pretrained(tiny("gpt2"), peft_config=1)
except ImportError as error:
    assert "pip install" in str(error), error
else:
    raise AssertionError
"""


def test_where_peft_is_not_installed_only_adapters_ask_for_it(tmp_path):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", WITHOUT_PEFT, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
