"""Adapters on a network give peft's own log-probs, are switched off without a trace, and written as peft reads them."""

import json
import shutil

import pytest
import torch
from peft import PeftModel

from dpo.lm.adapter_files import ALONE, AdapterError, Worn, kind_of, refuse_no_model, refuse_unusable
from dpo.lm.adapter_identity import describe
from dpo.lm.adapters import draw, put_on
from dpo.lm.head import ScoringLinear
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.models import load_model
from tests.dpo.lm.adapters import apart, computed, expected, lora, network, saved, sequences

pytestmark = pytest.mark.slow

KINDS = {
    "q and v": ("llama", {}),
    "all linear layers": ("llama", {"target_modules": "all-linear"}),
    "a saved head": ("llama", {"modules_to_save": ["lm_head"]}),
    "a saved head and embedding": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "DoRA": ("llama", {"target_modules": "all-linear", "use_dora": True}),
    "rsLoRA": ("llama", {"use_rslora": True}),
    "biases": ("llama", {"lora_bias": True}),
    "single tokens": ("llama", {"trainable_token_indices": [5, 6, 7]}),
    "the embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "patterns": ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}),
    "tied embeddings": ("llama-tied", {}),
    "a saved head of tied embeddings": ("llama-tied", {"modules_to_save": ["lm_head"]}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "attention beside experts": ("qwen3_moe", {}),
    "experts": ("qwen3_moe", {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
}


@pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS.keys())
def test_it_gives_pefts_log_probs_on_and_off_and_comes_back_as_written(tmp_path, kind, options):
    base = network(kind)
    theirs = lora(base, **options)
    folder, model = saved(theirs, tmp_path / "adapter"), saved(base, tmp_path / "base")
    refuse_unusable(folder, model)
    ours = load_model(model, torch.float32, worn=Worn(str(folder)))
    truth = expected(theirs)
    assert apart(truth, expected(base)) > 0.1
    for way in (Way(), Way(shared=False), Way(shared=False, scored_only=False)):
        assert apart(computed(ours, way), truth) < 5e-6
    assert isinstance(ours.head(), ScoringLinear)
    ours.adapted.switch(False)
    assert apart(computed(ours), expected(base)) < 5e-6
    ours.adapted.switch(True)
    assert apart(computed(ours), truth) < 5e-6
    (tmp_path / "written").mkdir()
    ours.adapted.write(tmp_path / "written", ours.adapted.trained(), "org/base")
    again = PeftModel.from_pretrained(network(kind), tmp_path / "written").eval()
    assert apart(expected(again), truth) < 5e-6
    assert describe(tmp_path / "written", model, "float32") == describe(folder, model, "float32")


@pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS.keys())
def test_only_one_that_changes_nothing_is_neutral(tmp_path, kind, options):
    base = network(kind)
    model = saved(base, tmp_path / "base")
    assert not describe(saved(lora(base, **options), tmp_path / "trained"), model, "float32").neutral
    new = lora(base, trained=False, **options)
    assert describe(saved(new, tmp_path / "new"), model, "float32").neutral
    assert apart(expected(new), expected(base)) == 0


def test_a_new_dora_adapter_is_neutral_in_the_type_that_it_was_made_in(tmp_path):
    base = network(dtype=torch.bfloat16)
    model = saved(base, tmp_path / "base")
    new = saved(lora(base, trained=False, use_dora=True), tmp_path / "new")
    assert describe(new, model, "bfloat16").neutral
    assert not describe(new, model, "float32").neutral


# Identity


@pytest.fixture
def adapter(tmp_path):
    """Folders of a base and of an adapter on it."""
    base = network()
    return saved(base, tmp_path / "base"), saved(lora(base), tmp_path / "adapter")


def changed(folder, **entries):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


def test_a_copy_and_other_words_for_one_function_are_one_identity(tmp_path, adapter):
    base, folder = adapter
    one = describe(folder, base, "float32")
    for number, entries in enumerate(
        (
            {},
            {"lora_alpha": 1, "alpha_pattern": {"q_proj": 8, "v_proj": 8}},
            {"lora_alpha": 4.0, "use_rslora": True},  # 4 / sqrt(4) = 8 / 4
            {"target_modules": ".*(q|v)_proj", "lora_dropout": 0.1, "base_model_name_or_path": "elsewhere"},
            {"inference_mode": False, "peft_version": "9", "task_type": None},
        )
    ):
        copy = changed(shutil.copytree(folder, tmp_path / str(number)), **entries)
        assert describe(copy, base, "float32") == one, entries


@pytest.mark.parametrize(
    "entries",
    [
        {"lora_alpha": 16},
        {"use_rslora": True},
        {"alpha_pattern": {"v_proj": 1}},
        {"rank_pattern": {"v_proj": 2}},
        {"use_dora": True},
        {"fan_in_fan_out": True},
        {"trainable_token_indices": [1]},
    ],
)
def test_what_changes_its_numbers_changes_its_identity(adapter, entries):
    base, folder = adapter
    before = describe(folder, base, "float32").digest
    assert describe(changed(folder, **entries), base, "float32").digest != before


def test_so_do_other_tensors(tmp_path, adapter):
    base, folder = adapter
    other = saved(lora(network(), seed=5), tmp_path / "other")
    assert describe(other, base, "float32").digest != describe(folder, base, "float32").digest


# Folders


def test_what_a_folder_is(tmp_path, adapter):
    base, folder = adapter
    (tmp_path / "empty").mkdir()
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copy(folder / "adapter_config.json", both)
    output = shutil.copytree(folder, tmp_path / "output")  # of a trainer that leaves the base's config beside it
    shutil.copy(base / "config.json", output)
    kinds = {path.name: kind_of(path) for path in (base, folder, both, output, tmp_path / "empty")}
    assert kinds == {"base": "model", "adapter": "adapter", "both": "both", "output": "adapter", "empty": "neither"}
    with pytest.raises(AdapterError, match="holds a model and an adapter beside it"):
        refuse_no_model(both)
    (output / "optimizer.pt").touch()
    changed(output, base_model_name_or_path="org/base")
    with pytest.raises(AdapterError) as said:
        refuse_no_model(output)
    assert 'is an adapter (LORA, r 4) on the base "org/base". Set policy.path = "org/base" and' in str(said.value)
    assert "optimizer.pt beside it are not read" in str(said.value)


REFUSED = {
    "another kind": ({"peft_type": "IA3"}, "is of type IA3; ray-align trains LORA"),
    "pissa": ({"init_lora_weights": "pissa"}, "changes the base's weights"),
    "an unknown key": ({"velora_config": {"a": 1}}, "sets velora_config, which this version does not know"),
    "a key of a later version": ({"new_thing": True}, "sets new_thing, which this version does not know"),
    "trained biases": ({"bias": "all"}, 'has bias = "all"'),
}


@pytest.mark.parametrize(("entries", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_an_adapter_that_cannot_be_trained_is_refused(adapter, entries, said):
    base, folder = adapter
    with pytest.raises(AdapterError, match=said):
        refuse_unusable(changed(folder, **entries), base)


def test_keys_of_later_versions_that_do_nothing_are_none(adapter):
    base, folder = adapter
    refuse_unusable(changed(folder, velora_config=None, new_thing=False), base)


def test_an_adapter_of_another_width_is_refused(tmp_path, adapter):
    _, folder = adapter
    other = saved(network(hidden_size=32), tmp_path / "narrow")
    with pytest.raises(AdapterError, match=r"was made for layers of width 64, and policy\.path has 32"):
        refuse_unusable(folder, other)


def test_one_of_other_layers_is_refused(tmp_path, adapter):
    _, folder = adapter
    with pytest.raises(AdapterError, match=r"has unknown tensors \(4\)"):
        put_on(network(num_hidden_layers=1), folder, torch.float32)
    with pytest.raises(AdapterError, match=r"lacks tensors \(4\)"):
        put_on(network(num_hidden_layers=3), folder, torch.float32)


TARGETS = {
    "nothing": ("llama", {"target_modules": ["query"]}, r"names no modules .* named .*q_proj"),
    "the head": ("llama", {"target_modules": ["q_proj", "lm_head"]}, "name it in modules_to_save"),
    "a tied embedding": ("llama-tied", {"target_modules": ["q_proj", "embed_tokens"]}, "is its output head as well"),
    "a module to save that is not there": (
        "llama", {"target_modules": ["q_proj"], "modules_to_save": ["hed"]}, "hed, which the model does not have",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "keys", "said"), TARGETS.values(), ids=TARGETS.keys())
def test_targets_that_cannot_be_adapted_are_refused(kind, keys, said):
    with pytest.raises(AdapterError, match=said):
        draw(network(kind), {"r": 4, "lora_alpha": 8, **keys}, 0)


def test_a_head_that_an_adapter_was_put_on_elsewhere_is_refused(tmp_path):
    base = network()
    folder = saved(lora(base, target_modules=["q_proj", "lm_head"]), tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r'modules_to_save = \["lm_head"\]'):
        refuse_unusable(folder, saved(base, tmp_path / "base"))


# Drawing and training


def test_a_seed_draws_one_adapter(tmp_path):
    found = [
        dict(draw(network(), {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, s).trained()) for s in (0, 0, 1)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_gradients_are_those_of_a_plain_forward_pass(tmp_path):
    """Shared prompts and the last layer's cut see the final modules."""
    base = network()
    found = []
    for way in (Way(), Way(shared=False, scored_only=False)):
        theirs = lora(base, target_modules="all-linear")
        ours = LogprobModel(HuggingFaceModel(theirs.get_base_model()), way)
        ours(ours.collate(sequences(), 0)).logps.sum().backward()
        found.append({name: p.grad for name, p in theirs.named_parameters() if p.requires_grad})
    assert len(found[0]) == 28
    for name, gradient in found[1].items():
        assert float((found[0][name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_without_an_adapter_nothing_is_put_on(tmp_path):
    model = saved(network(), tmp_path / "base")
    assert load_model(model, torch.float32, worn=ALONE).adapted is None
