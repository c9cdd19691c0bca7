"""Saving, loading, resuming, uploading."""

import json
import os
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, load_model, save_file
from transformers import BitsAndBytesConfig

from ppo.models import AutoModelForCausalLMWithValueHead, restore
from ppo.models.loading import hub_keywords, quantised_on_one_device_
from tests.ppo.models_tiny import ids, lora, saved, tiny

Causal = AutoModelForCausalLMWithValueHead
HEAD = {"v_head.summary.weight", "v_head.summary.bias"}


def wrapped(name="gpt2", **options):
    torch.manual_seed(3)
    return Causal(tiny(name), **options).eval()


def same(one, other):
    for a, b in zip(one(ids())[::2], other(ids())[::2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# State dicts


def test_the_own_state_dict_loads_back_strictly():
    model, other = wrapped(), Causal(tiny("gpt2", seed=1)).eval()
    state = model.state_dict()
    assert set(state) == set(model.pretrained_model.state_dict()) | HEAD
    assert other.load_state_dict(state) == ([], [])
    same(model, other)


def test_state_dicts_under_trls_names():
    model, other = wrapped(), Causal(tiny("gpt2", seed=1)).eval()
    named = model.trl_state_dict()
    assert set(named) == set(model.pretrained_model.state_dict()) | HEAD
    assert set(model.trl_state_dict(named)) == set(named)
    other.load_trl_state_dict(named)
    same(model, other)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_trl_state_dict({name: named[name] for name in HEAD})


def test_post_init_loads_a_head_and_nothing_else():
    model = wrapped()
    saved_head = {name: torch.ones_like(value) for name, value in model.trl_state_dict().items() if name in HEAD}
    kept = dict(saved_head)
    model.post_init(saved_head)
    assert model.v_head.summary.bias.item() == 1
    assert saved_head == kept  # the caller's dictionary is not emptied
    model.post_init({"transformer.wte.weight": torch.zeros(1)})
    assert model.v_head.summary.bias.item() == 1
    with pytest.raises(ValueError, match=r"The saved value head is summary\.bias"):
        model.post_init({"v_head.summary.bias": torch.ones(1)})


# Folders


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "neox"])
def test_a_folder_round_trip(name, tmp_path):
    model = wrapped(name)
    model.save_pretrained(save_directory=tmp_path / "a" / "b")
    on_disk = load_file(tmp_path / "a" / "b" / "model.safetensors")
    assert set(on_disk) > HEAD
    assert not any(key.startswith("pretrained_model") for key in on_disk)
    same(model, Causal.from_pretrained(str(tmp_path / "a" / "b")).eval())


def test_saving_changes_neither_the_model_nor_its_names(tmp_path):
    model = wrapped()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_folder_without_a_head_gives_a_new_one_and_says_so(tmp_path):
    folder = saved("gpt2", tmp_path)
    with pytest.warns(UserWarning, match=f"'{folder}' has no value head saved with it.*needs training"):
        model = Causal.from_pretrained(folder, v_head_init_strategy="normal", summary_dropout_prob=0.0)
    assert model.v_head.summary.bias.item() == 0
    assert isinstance(model.v_head.dropout, torch.nn.Identity)


def test_a_local_sharded_checkpoint_comes_back_with_its_head(tmp_path):
    model = wrapped()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert set(index["weight_map"]) > HEAD
    same(model, Causal.from_pretrained(tmp_path).eval())


def test_a_sharded_checkpoint_that_lacks_the_heads_shard_says_which(tmp_path):
    wrapped().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if k not in HEAD}, tmp_path / "model-1.safetensors", {"format": "pt"})
    (tmp_path / "model.safetensors").unlink()
    where = dict.fromkeys(state, "model-1.safetensors") | dict.fromkeys(HEAD, "model-2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with pytest.raises(ValueError, match=r"the value head is in 'model-2.safetensors', which .* lacks\. Copy"):
        restore.read_head(tmp_path, {})


def test_pickled_checkpoints_are_read_whole_and_sharded(tmp_path):
    model = wrapped()
    want = {f"v_head.{name}": value for name, value in model.v_head.state_dict().items()}
    torch.save(model.trl_state_dict(), tmp_path / "pytorch_model.bin")
    assert {f"v_head.{name}" for name in restore.read_head(tmp_path, {})} == HEAD
    (tmp_path / "pytorch_model.bin").unlink()
    for number, name in enumerate(sorted(want)):
        torch.save({name: want[name]}, tmp_path / f"pytorch_model-{number}.bin")
    where = {name: f"pytorch_model-{number}.bin" for number, name in enumerate(sorted(want))}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    found = restore.read_head(tmp_path, {})
    assert all(torch.equal(value, want[f"v_head.{name}"]) for name, value in found.items())
    assert len(found) == 2


def test_a_pickle_that_is_no_plain_tensors_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"v_head.summary.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        restore.read_head(tmp_path, {})
    assert not (tmp_path / "ran").exists()


def test_gathered_weights_are_written_instead_of_the_own(tmp_path):
    model, other = wrapped(), Causal(tiny("gpt2", seed=1)).eval()
    gathered = {name: value.clone() for name, value in model.state_dict().items()}
    other.save_pretrained(tmp_path / "own names", state_dict=gathered)
    other.save_pretrained(tmp_path / "theirs", state_dict=model.trl_state_dict(gathered))
    for folder in ("own names", "theirs"):
        same(model, Causal.from_pretrained(tmp_path / folder).eval())
    with pytest.raises(ValueError, match=r"state_dict given lacks \['v_head\.summary\.weight'.*Gather"):
        other.save_pretrained(tmp_path / "none", state_dict=model.pretrained_model.state_dict())


def test_only_the_main_process_writes(tmp_path):
    wrapped().save_pretrained(tmp_path / "new", is_main_process=False)
    assert not list((tmp_path / "new").glob("*.safetensors"))


def test_a_bfloat16_checkpoint_keeps_its_head_in_float32(tmp_path):
    model = Causal(tiny("llama").bfloat16()).eval()
    model.save_pretrained(tmp_path)
    again = Causal.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert again.pretrained_model.dtype == torch.bfloat16
    assert torch.equal(again.v_head.summary.weight, model.v_head.summary.weight)
    assert again.v_head.summary.weight.dtype == torch.float32


def test_an_instance_stays_itself_and_brings_its_own_head():
    base = tiny("gpt2")
    model = Causal.from_pretrained(base, v_head_init_strategy="normal")
    assert model.pretrained_model is base
    base.v_head = torch.nn.Module()
    base.v_head.summary = torch.nn.Linear(16, 1)
    again = Causal.from_pretrained(base)
    assert torch.equal(again.v_head.summary.weight, base.v_head.summary.weight)


def test_a_folder_inside_a_folder(tmp_path):
    model = wrapped()
    model.save_pretrained(tmp_path / "inner")
    same(model, Causal.from_pretrained(tmp_path, subfolder="inner").eval())


def test_the_hub_is_asked_where_and_for_no_more_than_needed(tmp_path, monkeypatch):
    wrapped().save_pretrained(tmp_path / "head")
    saved("gpt2", tmp_path / "none")
    asked = []

    def download(repo, name, **options):
        asked.append((name, options))
        if not (tmp_path / repo / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / repo / name)

    monkeypatch.setattr(restore, "hf_hub_download", download)
    where = {"revision": "r1", "token": "t"}
    assert set(restore.read_head("head", where)) == {"summary.weight", "summary.bias"}
    assert restore.read_head("none", where) == {}
    # Where the first file has no head, no pickled copy of all weights is fetched to look there too.
    assert asked == [("model.safetensors", where)] * 2
    assert restore.find_file("none", "adapter_config.json", where) is None


def test_hub_keywords_are_those_given():
    assert hub_keywords({"revision": "r", "token": None, "dtype": 1, "subfolder": "s"}) == {
        "revision": "r",
        "subfolder": "s",
    }


# What cannot be loaded


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"peft_config": {"r": 4}}, r"peft_config is \{'r': 4\} and has to be a PeftConfig"),
        ({"reward_adapter": 7}, r"reward_adapter is 7 and has to be the folder"),
        ({"reward_adapter": "rm"}, r"reward_adapter = 'rm' needs a policy with an adapter.*Give peft_config"),
    ],
)
def test_wrong_arguments_are_refused(arguments, fault):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=fault):
        Causal.from_pretrained(tiny("gpt2"), **arguments)


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c"])
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is neither a folder here nor the name of a Hub repository. Give"):
        Causal.from_pretrained(name)


IDLE = {"device_map": "auto", "torch_dtype": torch.bfloat16, "trust_remote_code": True}


@pytest.mark.parametrize("make", [Causal, Causal.from_pretrained])
def test_keywords_for_loading_with_an_instance(make):
    """Those that would have made another model are refused; others are left out, with a word."""
    base = tiny("gpt2")
    with pytest.warns(UserWarning, match="device_map = 'auto', .*left out, for the GPT2LMHeadModel given is loaded"):
        model = make(base, **IDLE)
    assert model.pretrained_model is base
    assert base.dtype == torch.float32
    with pytest.raises(TypeError, match=r"'load_in_8bit': .*a GPT2LMHeadModel was given, which is loaded already"):
        make(base, load_in_8bit=True)


def test_a_state_dict_loads_into_the_base_model_and_back():
    """Under TRL's names; also leniently, and under the names of earlier versions."""
    model, base = wrapped(), tiny("gpt2", seed=1)
    found = base.load_state_dict(model.state_dict(), strict=False)
    assert (found.missing_keys, sorted(found.unexpected_keys)) == ([], sorted(HEAD))
    for (name, a), b in zip(model.pretrained_model.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(a, b), name
    other = Causal(tiny("gpt2", seed=1)).eval()
    earlier = {name if name in HEAD else f"pretrained_model.{name}": v for name, v in model.state_dict().items()}
    assert other.load_state_dict(earlier) == ([], [])
    same(model, other)
    other = Causal(tiny("gpt2", seed=1)).eval()
    assert sorted(other.load_state_dict(model.pretrained_model.state_dict(), strict=False).missing_keys) == sorted(HEAD)


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_a_file_with_a_tied_weight_under_one_name_loads(tmp_path, kept, prefix):
    """As accelerate writes and reads it; earlier versions, under names of parameters, kept the embedding's."""
    model, other = wrapped(), Causal(tiny("gpt2", seed=1)).eval()
    dropped = {"lm_head.weight": "transformer.wte.weight", "transformer.wte.weight": "lm_head.weight"}[kept]
    held = {name: value for name, value in model.state_dict().items() if name != dropped}
    file = {name if name in HEAD else prefix + name: value.clone() for name, value in held.items()}
    save_file(file, tmp_path / "model.safetensors")
    load_model(other, tmp_path / "model.safetensors")
    same(model, other)


def test_a_lenient_load_of_nothing_is_told():
    model = wrapped()
    with pytest.warns(UserWarning, match=r"not one weight of the base model was loaded, .*\['module.x'\]"):
        found = model.load_state_dict({"module.x": torch.zeros(1)}, strict=False)
    assert set(found.missing_keys) == set(model.state_dict())


class Recorder:
    """In place of AutoModelForCausalLM: says how it was called."""

    __name__ = "Recorder"

    def from_pretrained(self, source, *args, **kwargs):
        self.called = (source, args, kwargs)
        return tiny("gpt2")


def test_keywords_go_where_they_belong(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    recorder = Recorder()
    monkeypatch.setattr(Causal, "transformers_parent_class", recorder)
    with pytest.warns(UserWarning, match="no value head"):
        model = Causal.from_pretrained(
            saved("gpt2", tmp_path),
            summary_dropout_prob=0.0,
            use_gradient_checkpointing=False,
            model="m",
            name="x",
            param=1,
        )
    # `model` is what PEFT's function prepares; `name` and `param` are local variables of it, not arguments.
    assert recorder.called == (str(tmp_path), (), {"model": "m", "name": "x", "param": 1})
    assert isinstance(model.v_head.dropout, torch.nn.Identity)


@pytest.mark.parametrize("flag", ["load_in_8bit", "load_in_4bit"])
def test_a_quantised_model_goes_whole_onto_this_device(flag, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(BitsAndBytesConfig, "post_init", lambda self: None)  # which asks for bitsandbytes
    keywords = {flag: True, "dtype": "auto"}
    with pytest.warns(UserWarning, match="without device_map: all of it goes to this process's device, 3"):
        quantised_on_one_device_(keywords)
    assert keywords["device_map"] == {"": 3}
    assert getattr(keywords.pop("quantization_config"), flag)
    assert keywords == {"device_map": {"": 3}, "dtype": "auto"}
    told = {"quantization_config": BitsAndBytesConfig(**{flag: True}), "device_map": "auto"}
    quantised_on_one_device_(told)
    assert told["device_map"] == "auto"
    plain = {flag: False}
    quantised_on_one_device_(plain)
    assert plain == {}


# Adapters


@pytest.fixture
def base_folder(tmp_path):
    pytest.importorskip("peft")
    return saved("llama", tmp_path / "base")


def with_adapter(folder, **options):
    with pytest.warns(UserWarning, match="no value head"):
        model = Causal.from_pretrained(folder, peft_config=lora(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return model


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_new_adapter_and_the_head_are_trained(base_folder):
    model = with_adapter(base_folder)
    assert model.is_peft_model
    assert model.policy_adapter_name == "default"
    assert all("lora" in name or name in HEAD for name in trained(model))
    assert len(trained(model)) == 2 * 2 * 2 + 2
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("is_trainable", [False, True])
def test_an_adapter_round_trip(base_folder, tmp_path, is_trainable):
    model = with_adapter(base_folder)
    model.save_pretrained(save_directory=tmp_path / "new" / "adapter")
    files = {path.name for path in (tmp_path / "new" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin"} <= files
    assert "model.safetensors" not in files
    assert set(torch.load(tmp_path / "new" / "adapter" / "pytorch_model.bin", weights_only=True)) == HEAD
    again = Causal.from_pretrained(tmp_path / "new" / "adapter", is_trainable=is_trainable).eval()
    same(model, again)
    assert trained(again) == (trained(model) if is_trainable else HEAD)


def test_a_peft_config_for_a_trained_adapter_is_ignored_and_said_so(base_folder, tmp_path):
    model = with_adapter(base_folder)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="is a trained adapter.*peft_config given with it is ignored"):
        again = Causal.from_pretrained(tmp_path / "adapter", peft_config=lora(r=7))
    same(model, again.eval())
    with pytest.warns(UserWarning, match="has an adapter already"):
        third = Causal.from_pretrained(model.pretrained_model, peft_config=lora(r=7))
    assert third.pretrained_model is model.pretrained_model


def test_an_adapter_of_another_name_comes_back_from_its_own_folder(base_folder, tmp_path):
    from peft import get_peft_model

    model = Causal(get_peft_model(tiny("llama"), lora(), adapter_name="mine")).eval()
    model.pretrained_model.peft_config["mine"].base_model_name_or_path = base_folder
    assert model.policy_adapter_name == "mine"
    model.save_pretrained(tmp_path / "out")
    same(model, Causal.from_pretrained(tmp_path / "out" / "mine").eval())


def test_gathered_adapter_weights_are_written_instead_of_the_own(base_folder, tmp_path):
    model, other = with_adapter(base_folder), with_adapter(base_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.requires_grad else 1)
    other.save_pretrained(tmp_path / "gathered", state_dict=model.state_dict())
    same(model, Causal.from_pretrained(tmp_path / "gathered").eval())
    frozen = Causal.from_pretrained(tmp_path / "gathered")
    assert trained(frozen) == HEAD
    for policy in (other, frozen):
        with pytest.raises(ValueError, match=r"lacks 8 weights of the adapter, 'base_model.*Gather"):
            policy.save_pretrained(tmp_path / "head only", state_dict=model.trl_state_dict())


def test_an_adapter_without_the_name_of_its_base_is_refused(base_folder, tmp_path):
    with_adapter(base_folder).save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"has no base_model_name_or_path\. Write the folder"):
        Causal.from_pretrained(tmp_path / "adapter")


def test_adapters_with_virtual_tokens_are_refused(base_folder, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    fault = r"of the type PROMPT_TUNING, which puts virtual tokens in front.*such as LoraConfig"
    with pytest.raises(ValueError, match=fault):
        Causal.from_pretrained(base_folder, peft_config=config)
    prompted = get_peft_model(tiny("llama"), config)
    with pytest.raises(ValueError, match=fault):
        Causal(prompted)
    prompted.save_pretrained(str(tmp_path / "prompted"))
    with pytest.raises(ValueError, match=fault):
        Causal.from_pretrained(tmp_path / "prompted")


# The Hub


class FakeHub:
    """Keeps what is uploaded."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.calls.append(("upload", repo_id, options))
        shutil.copytree(folder_path, self.folder)
        return "https://huggingface.co/commit"


def test_pushing_uploads_the_head_and_leaves_the_model_alone(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    model = wrapped()
    names = [name for name, _ in model.named_parameters()]
    assert (
        model.push_to_hub("me/model", token="t", private=True, max_shard_size="4KB") == "https://huggingface.co/commit"
    )
    assert [call[0] for call in fake.calls] == ["token", "create", "upload"]
    assert [name for name, _ in model.named_parameters()] == names
    same(model, Causal.from_pretrained(tmp_path / "hub").eval())


def test_offline_a_push_fails_before_anything_happens(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    model = wrapped()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConnectionError, match=r"'me/model' could not be pushed.*HF_HUB_OFFLINE=1.*save_pretrained"):
        model.push_to_hub("me/model")
    assert fake.calls == []
    assert [name for name, _ in model.named_parameters()] == names


def test_a_push_that_fails_halfway_leaves_the_model_alone(tmp_path, monkeypatch):
    class Broken(FakeHub):
        def upload_folder(self, **options):
            raise ConnectionError("gone")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Broken(tmp_path))
    model = wrapped()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConnectionError, match="gone"):
        model.push_to_hub("me/model")
    assert [name for name, _ in model.named_parameters()] == names


def test_saving_does_not_push_on_the_side(tmp_path):
    with pytest.raises(TypeError, match=r"takes no push_to_hub: call push_to_hub\(repo_id\)"):
        wrapped().save_pretrained(tmp_path, push_to_hub=True)
