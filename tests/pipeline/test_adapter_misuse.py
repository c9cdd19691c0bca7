"""Wrong uses of adapters: one paragraph with the fault and the fix, before anything is scored."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dpo.lm.adapter_files import TENSORS, other_base
from pipeline.errors import ConfigError
from pipeline.models.asked import given_adapter
from tests.dpo.lm.adapters import lora, network, saved
from tests.pipeline.adapted import NEW, prepared, whole
from tests.pipeline.lab import config, losses, place_of

pytestmark = pytest.mark.group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("misuse") / "lab")
    both = shutil.copytree(folder / "base", folder / "both")
    shutil.copytree(folder / "trained", both, dirs_exist_ok=True)
    saved(network(vocab_size=300, hidden_size=32), folder / "narrow")
    saved(network("llama-tied", vocab_size=300), folder / "tied")
    saved(network(vocab_size=100), folder / "few-tokens")
    changed(folder / "trained", folder / "ia3", peft_type="IA3")
    changed(folder / "trained", folder / "later", velora_config={"a": 1})
    changed(folder / "trained", folder / "pissa", init_lora_weights="pissa")
    changed(folder / "trained", folder / "rank-as-text", r="4")
    changed(folder / "trained", folder / "rank-8", r=8)
    changed(folder / "trained", folder / "pattern", alpha_pattern={"q_proj": None})
    tensors = tensors_of(folder / "trained")
    half, *others = sorted(tensors)
    nan = torch.full_like(tensors[half], float("nan"))
    embedding = {"base_model.model.model.embed_tokens.weight": torch.zeros(303, 64)}
    save_file(tensors | {half: nan}, changed(folder / "trained", folder / "broken") / TENSORS)
    save_file({name: tensors[name] for name in others}, changed(folder / "trained", folder / "cut") / TENSORS)
    save_file(tensors | embedding, changed(folder / "trained", folder / "resized") / TENSORS)
    output = changed(folder / "trained", folder / "output", base_model_name_or_path="org/base")
    shutil.copy(folder / "base" / "config.json", output)
    (output / "optimizer.pt").touch()
    quantized = shutil.copytree(folder / "base", folder / "quantized")
    settings = json.loads((quantized / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (quantized / "config.json").write_text(json.dumps(settings))
    return folder


def changed(source, target, **entries):
    """A copy of an adapter's folder with other entries in its config."""
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return target


def tensors_of(folder):
    with safe_open(folder / TENSORS, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# What is given, and what is said. {} stands for the folder.
MISUSES = {
    "policy.path is an adapter": (["policy.path={}/output"], 'is an adapter (LORA, r 4) on the base "org/base". Set'),
    "a trainer's checkpoint": (["policy.path={}/output"], "optimizer.pt beside it are not read"),
    "model and adapter in one folder": (["policy.path={}/both"], "holds a model and an adapter beside it"),
    "both as an adapter": (["policy.adapter.path={}/both"], "holds a model and an adapter beside it"),
    "a model as an adapter": (["policy.adapter.path={}/merged"], "is a whole model, not an adapter"),
    "another base": (
        ["policy.path={}/narrow", "policy.adapter.path={}/trained"],
        "was made for layers of width 64, and policy.path has 32",
    ),
    "not LoRA": (["policy.adapter.path={}/ia3"], "is of type IA3; ray-align trains LORA"),
    "an unknown key": (["policy.adapter.path={}/later"], "sets velora_config, which this version does not know"),
    "a rank that is text": (["policy.adapter.path={}/rank-as-text"], "r = '4' in adapter_config.json is no rank"),
    "an alpha that is null": (
        ["policy.adapter.path={}/pattern"],
        "alpha_pattern of 'q_proj' = None in adapter_config.json is no rank or alpha",
    ),
    "a rank of other matrices": (["policy.adapter.path={}/rank-8"], "the rank 8, and its matrix has 4"),
    "one of several names": (['policy.adapter.target_modules=["q_proj","v_porj"]'], "names 'v_porj', which the model"),
    "no regular expression": (["policy.adapter.target_modules=(q_proj"], "is no regular expression: missing )"),
    "NaN": (["policy.adapter.path={}/broken"], "has weights that are infinite or NaN"),
    "half of a pair": (["policy.adapter.path={}/cut"], "without its other half, "),
    "a resized vocabulary": (
        ["policy.adapter.path={}/resized"],
        "embed_tokens.weight of 303 rows; policy.path has 300: it was probably trained after the vocabulary was",
    ),
    "pissa in a folder": (["policy.adapter.path={}/pissa"], 'init_lora_weights = "pissa" changes the base\'s weights'),
    "no such modules": (['policy.adapter.target_modules=["query"]'], "q_proj"),
    "the head": (['policy.adapter.target_modules=["q_proj","lm_head"]'], "name it in modules_to_save"),
    "a tied embedding": (
        ["policy.path={}/tied", 'policy.adapter.target_modules=["q_proj","embed_tokens"]'],
        "is its output head as well",
    ),
    "another tokenizer's reference": (
        [*NEW, "reference.model={}/few-tokens"],
        "the tokenizer has",
    ),
    "keys that differ": (
        ["policy.adapter.path={}/trained", "policy.adapter.r=16"],
        "policy.adapter.r = 16, and the adapter",
    ),
    "quantized already": (
        ["policy.path={}/quantized", "policy.quantize=nf4", *NEW],
        "is quantized (quantization_config in its config.json, method gptq)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISUSES.values(), ids=MISUSES.keys())
def test_it_is_refused_in_one_paragraph_before_anything_is_scored(lab, folder, words, said):
    answer = lab.line(folder, *(word.format(folder) for word in words), "run.name=misuse")
    assert isinstance(answer, str) and said in answer, answer
    kind, _, text = answer.partition(": ")
    assert kind in ("AdapterError", "ModelError", "ConfigError", "InputError")  # all of them end with status 2
    assert "\n" not in text and len(text) < 600
    assert not (folder / "workspace" / "cache").exists()


CONFIGURED = {
    "pissa by key": ["policy.adapter.init_lora_weights=pissa"],
    "ZeRO-3 of a quantized base": [*NEW, "policy.quantize=nf4", "deepspeed.stage=3"],
    "quantize without adapter": ["policy.quantize=int8"],
    "adapter keys of x-transformers": ["policy.kind=x-transformers", *NEW],
    "merge without adapter": ["export.merge=true"],
    "no reference": ["reference.model=none"],
    "no targets": ["policy.adapter.target_modules=[]"],
    "all-linear in brackets": ['policy.adapter.target_modules=["all-linear"]'],
    "names in one text": ["policy.adapter.target_modules=q_proj,v_proj"],
}


@pytest.mark.parametrize("words", CONFIGURED.values(), ids=CONFIGURED.keys())
def test_so_is_what_the_configuration_alone_tells(folder, words):
    with pytest.raises(ConfigError) as error:
        config(folder, *words)
    assert len(str(error.value).splitlines()) == 1


def test_another_name_of_the_base_is_only_said_in_the_card_too(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    named = changed(folder / "trained", folder / "elsewhere", base_model_name_or_path="org/other")
    assert other_base(named, "a/base") == "org/other"
    assert other_base(named, "mine/other") is None
    assert isinstance(lab.line(folder, f"policy.adapter.path={named}"), dict)
    card = (folder / "runs" / "base" / "export" / "README.md").read_text()
    assert "| Base that the first adapter names | org/other, which is not the one it was put on |" in card


@pytest.mark.parametrize(("package", "words"), [("peft", []), ("bitsandbytes", ["policy.quantize=nf4"])])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(folder, monkeypatch, package, words):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'needs {package}, which is not installed: pip install -e "\.\[\w+\]"$'):
        given_adapter(place_of(folder, *NEW, *words), folder / "base")


def test_a_run_whose_base_or_adapter_changed_is_refused_with_both_digests(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    words = (f"policy.adapter.path={folder / 'trained'}",)
    assert isinstance(lab.line(folder, *words, until="order"), dict)
    shutil.rmtree(folder / "trained")
    saved(lora(whole(), seed=7), folder / "trained")
    said = lab.line(folder, *words)
    assert "adapter (policy.adapter.path), digest " in said and " before and " in said
    shutil.rmtree(folder / "base")
    saved(network(vocab_size=300, initializer_range=0.3), folder / "base")
    assert "weights (policy.path), digest " in lab.line(folder, *words)
    assert not (folder / "runs" / "base" / "metrics.jsonl").exists() or not losses(folder)
