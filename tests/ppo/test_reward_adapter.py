"""The reward adapter: loading it, scores, and that nothing else is changed by it."""

import pytest
import torch

from ppo.models import AutoModelForCausalLMWithValueHead, last_token_reward
from ppo.models.adapters import read_score
from tests.ppo.models_tiny import ids, lora, padded_left, saved, saved_reward_adapter, tiny

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*has no value head saved")
Causal = AutoModelForCausalLMWithValueHead


def policy(**options):
    model = Causal.from_pretrained(tiny("llama"), peft_config=lora(), **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.fill_(0.05)
    return model


def state(model):
    """All that a reward must not change."""
    modes = {name: part.training for name, part in model.named_modules()}
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    return modes, gradients, model.pretrained_model.active_adapter


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("labels", [1, 3])
def test_the_last_tokens_score_is_the_classifiers(tmp_path, safe, labels):
    classifier = saved_reward_adapter(tmp_path, labels, safe)
    assert (tmp_path / ("adapter_model.safetensors" if safe else "adapter_model.bin")).exists()
    model = policy(reward_adapter=str(tmp_path))
    scores = model.compute_reward_score(ids(), attention_mask=torch.ones_like(ids()))
    assert scores.shape == (2, 6, labels)
    assert not scores.requires_grad
    want = classifier(ids()).logits.detach()
    got = last_token_reward(scores, torch.ones_like(ids()))
    torch.testing.assert_close(got, want[:, 0] if labels == 1 else want, rtol=1e-5, atol=1e-5)
    tokens, mask = padded_left(ids(), 3)
    behind_pads = last_token_reward(model.compute_reward_score(tokens, attention_mask=mask), mask)
    torch.testing.assert_close(behind_pads, got, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_score_changes_neither_mode_nor_adapter_nor_what_is_trained(tmp_path, training):
    saved_reward_adapter(tmp_path)
    model = policy(reward_adapter=str(tmp_path)).train(training)
    model.pretrained_model.base_model.model.model.layers[0].train(not training)
    logits = model.eval()(ids())[0]
    model.train(training)
    before = state(model)
    model.compute_reward_score(ids())
    assert state(model) == before
    with pytest.raises(IndexError):
        model.compute_reward_score(ids() + 1000)
    assert state(model) == before
    torch.testing.assert_close(model.eval()(ids())[0], logits, rtol=0, atol=0)


def test_a_frozen_policy_adapter_stays_frozen(tmp_path):
    """PEFT's switch makes the adapter that it switches to trainable."""
    saved_reward_adapter(tmp_path / "rm")
    base = saved("llama", tmp_path / "base")
    Causal.from_pretrained(base, peft_config=lora()).save_pretrained(tmp_path / "policy")
    model = Causal.from_pretrained(tmp_path / "policy", reward_adapter=tmp_path / "rm")
    model.compute_reward_score(ids())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"v_head.summary.weight", "v_head.summary.bias"}


def test_loading_freezes_the_reward_model_and_changes_nothing_else(tmp_path):
    saved_reward_adapter(tmp_path)
    model = policy().train()
    modes, gradients, active = state(model)
    logits = model.eval()(ids())[0]
    model.train()
    model.add_and_load_reward_modeling_adapter(tmp_path)
    assert model.rm_adapter_name == "reward_model_adapter"
    after = state(model)
    assert {name: after[0][name] for name in modes} == modes
    assert {name: after[1][name] for name in gradients} == gradients
    assert not any(value for name, value in after[1].items() if name not in gradients)
    assert not any(parameter.requires_grad for parameter in model.score.parameters())
    assert after[2] == active
    torch.testing.assert_close(model.eval()(ids())[0], logits, rtol=0, atol=0)
    model.load_state_dict(model.state_dict())


def test_no_gradient_reaches_the_reward_model_in_training(tmp_path):
    saved_reward_adapter(tmp_path)
    model = policy(reward_adapter=str(tmp_path), reward_adapter_name="judge").train()
    model.compute_reward_score(ids())
    model(ids())[2].sum().backward()
    assert not any(p.grad is not None for name, p in model.named_parameters() if "judge" in name or "score" in name)
    assert any(p.grad is not None for name, p in model.named_parameters() if "lora_B.default" in name)


def test_the_adapter_to_go_back_to_can_be_named(tmp_path):
    saved_reward_adapter(tmp_path)
    model = policy(reward_adapter=str(tmp_path))
    model.pretrained_model.add_adapter("other", lora())
    model.compute_reward_score(ids(), ppo_adapter_name="other")
    assert model.pretrained_model.active_adapter == "other"
    with pytest.raises(ValueError, match=r"ppo_adapter_name is 'typo', and the adapters are \['default'.*Give one"):
        model.compute_reward_score(ids(), ppo_adapter_name="typo")
    assert model.pretrained_model.active_adapter == "other"


def test_the_policys_folder_holds_the_policys_adapter_alone(tmp_path):
    saved_reward_adapter(tmp_path / "rm")
    model = policy(reward_adapter=str(tmp_path / "rm"))
    model.save_pretrained(tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    head = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert set(head) == {"v_head.summary.weight", "v_head.summary.bias"}


def test_an_adapter_without_score_is_refused(tmp_path):
    policy().save_pretrained(tmp_path / "policy")
    model = policy()
    with pytest.raises(ValueError, match=r"holds no weight named score, so it is no reward adapter.*SEQ_CLS"):
        model.add_and_load_reward_modeling_adapter(tmp_path / "policy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has neither adapter_model.safetensors nor adapter_model.bin\. Give"):
        model.add_and_load_reward_modeling_adapter(tmp_path / "empty")
    assert model.rm_adapter_name is None


def test_rewards_need_an_adapter(tmp_path):
    with pytest.raises(ValueError, match=r"No reward adapter is loaded\. Give reward_adapter"):
        policy().compute_reward_score(ids())
    with pytest.raises(ValueError, match=r"needs a PEFT model, and the base of this one is LlamaForCausalLM"):
        Causal(tiny("llama")).add_and_load_reward_modeling_adapter(tmp_path)
    saved_reward_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"an adapter named 'default' already\. Give another"):
        policy(reward_adapter=str(tmp_path), reward_adapter_name="default")


def test_a_score_head_may_have_a_bias(tmp_path):
    from safetensors.torch import load_file, save_file

    saved_reward_adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (weight,) = [name for name in tensors if name.endswith("score.weight")]
    model = policy(reward_adapter=str(tmp_path))
    plain = model.compute_reward_score(ids())
    tensors[weight.replace("weight", "bias")] = torch.tensor([2.0])
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    torch.testing.assert_close(policy(reward_adapter=str(tmp_path)).compute_reward_score(ids()), plain + 2)


def test_only_the_trained_score_head_is_read(tmp_path):
    from safetensors.torch import load_file, save_file

    saved_reward_adapter(tmp_path)
    want = policy(reward_adapter=str(tmp_path)).score.weight
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for other in ("original_module", "lora_A", "lora_B"):
        tensors[f"base_model.model.score.{other}.weight"] = torch.zeros(7, 5)
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    assert torch.equal(read_score(tmp_path, ("score",), {}).weight, want)


def test_the_last_real_token_whatever_the_padding():
    scores = torch.arange(12.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    assert last_token_reward(scores, mask).tolist() == [1.0, 7.0, 10.0]
    assert last_token_reward(scores.expand(3, 4, 2), mask.bool()).tolist() == [[1.0, 1.0], [7.0, 7.0], [10.0, 10.0]]
    with pytest.raises(ValueError, match=r"Rows \[1\] of attention_mask have no real token.*Leave these rows out"):
        last_token_reward(scores, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 1\) and an attention_mask of shape \(3, 3\) do not fit"):
        last_token_reward(scores, mask[:, :3])
