"""PPOTrainer's arguments, what it refuses, its loader, what it tells and keeps."""

import inspect

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from torch import nn, tensor
from torch.optim.lr_scheduler import LambdaLR

from dpo.lm.x_transformers import XTransformersModel
from ppo import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOTrainer,
    XTransformersWithValueHead,
)
from tests.dpo.tiny import x_config
from tests.ppo import tiny
from tests.ppo.trials import (
    GREEDY,
    KINDS,
    QUIET,
    Numbers,
    batch,
    changed,
    everything,
    flat,
    plain,
    policy,
    same,
    trainer,
    weights,
)

pytestmark = QUIET


# The constructor


def test_the_arguments_are_trls():
    names = "config model ref_model tokenizer dataset optimizer data_collator num_shared_layers lr_scheduler"
    names += " training_data_collator"
    assert " ".join(inspect.signature(PPOTrainer).parameters) == names


def test_all_nine_arguments_are_used():
    model, reference = tiny.causal(0), tiny.causal(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    config, tokenizer, dataset = tiny.config(), tiny.tokenizer(), Numbers(8)
    with pytest.warns(UserWarning, match="num_shared_layers = 1 is ignored: ref_model is given") as seen:
        found = PPOTrainer(config, model, reference, tokenizer, dataset, optimizer, len, 1, scheduler)
    assert seen[0].filename == __file__
    assert found.config is config
    assert found.model is model
    assert found.ref_model is reference
    assert found.tokenizer is tokenizer
    assert found.dataset is dataset
    assert found.optimizer.optimizer is optimizer
    assert list(found.dataloader) == [4, 4]
    assert found.lr_scheduler.scheduler is scheduler
    assert not any(p.requires_grad for p in reference.parameters())
    assert not reference.training


def padded_beyond():
    found = tiny.tokenizer()
    found.add_special_tokens({"pad_token": "<new>"})
    return found


WRONG = {
    "config": ({"seed": 0}, "config must be a ppo.PPOConfig, not builtins.dict"),
    "model": (nn.Linear(1, 1), "model must be AutoModelForCausalLMWithValueHead, .* not torch.*Linear"),
    "ref_model": (nn.Linear(1, 1), "ref_model must be .*, or None, not torch.*Linear"),
    "ref_model of another kind": (tiny.seq2seq, "model and ref_model must be of one kind"),
    "tokenizer": (None, "tokenizer must be a tokenizer of transformers, not builtins.NoneType"),
    "dataset": ([1, 2], "dataset must be a torch.utils.data.Dataset or a datasets.Dataset, not builtins.list"),
    "optimizer": ("adam", "optimizer must be a torch.optim.Optimizer, not builtins.str"),
    "lr_scheduler": (0.1, "lr_scheduler must be a torch.optim.lr_scheduler.LRScheduler, not builtins.float"),
    "ref_model of another vocabulary": (
        lambda: AutoModelForCausalLMWithValueHead(tiny.gpt2(vocabulary=30)),
        "model knows 24 tokens and ref_model 30: they must be of one vocabulary",
    ),
    "tokenizer of another vocabulary": (
        lambda: padded_beyond(),
        "the padding token is 24, and the model knows 24 tokens: set tokenizer.pad_token = tokenizer.eos_token",
    ),
    "optimizer of another model": (
        lambda: torch.optim.SGD(tiny.causal(3).parameters(), lr=1.0),
        "optimizer holds no trainable parameter of model: make it of model.parameters",
    ),
    "lr_scheduler alone": (
        lambda: LambdaLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), lambda step: 1.0),
        "its own optimizer: give that optimizer too",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_constructor_refuses(name):
    value, text = WRONG[name]
    arguments = {"config": tiny.config(), "model": tiny.causal(), "ref_model": tiny.causal(1)}
    arguments |= {"tokenizer": tiny.tokenizer()}
    key = name.split()[0]
    made = value() if callable(value) and not isinstance(value, nn.Module) else value
    with pytest.raises(ValueError, match=text):
        PPOTrainer(**(arguments | {key: made}))


def test_checkpointing_of_a_network_that_cannot_is_refused():
    """x-transformers keeps all activations: asking for the other thing is a mistake in the configuration."""
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        trainer("x", gradient_checkpointing=True)


def test_the_policy_is_not_its_own_reference():
    """Freezing the reference would freeze the policy."""
    model = tiny.causal()
    with pytest.raises(ValueError, match="ref_model"):
        PPOTrainer(tiny.config(), model, model, tiny.tokenizer())


def test_no_dataset_is_told():
    with pytest.warns(UserWarning, match="dataloader is None, hand queries to generate yourself") as seen:
        found = PPOTrainer(tiny.config(), tiny.causal(), tiny.causal(1), tiny.tokenizer())
    assert seen[0].filename == __file__
    assert found.dataloader is None


def test_the_reference_is_a_frozen_copy():
    model = tiny.causal()
    found = PPOTrainer(tiny.config(), model, None, tiny.tokenizer())
    own = dict(model.named_parameters())
    for name, value in found.ref_model.named_parameters():
        assert torch.equal(value, own[name])
        assert value.data_ptr() != own[name].data_ptr()
        assert not value.requires_grad
    assert not found.ref_model.training
    assert all(value.requires_grad for value in own.values())
    before = flat(found.ref_model)
    found.step(*batch())
    assert torch.equal(flat(found.ref_model), before)
    assert not torch.equal(flat(model), before)


def test_shared_layers_are_in_memory_once():
    """One shared layer: the embeddings and layer 0, which then nobody trains."""
    model = tiny.causal(0, tie_word_embeddings=False)
    found = PPOTrainer(tiny.config(), model, None, tiny.tokenizer(), num_shared_layers=1)
    own = dict(model.named_parameters())
    shared = {n for n, value in found.ref_model.named_parameters() if value.data_ptr() == own[n].data_ptr()}
    assert shared == {n for n in own if ".wte." in n or ".wpe." in n or ".h.0." in n}
    trained = {id(p) for group in found.optimizer.param_groups for p in group["params"]}
    assert trained == {id(value) for n, value in own.items() if n not in shared}
    before = weights(model)
    stats = found.step(*batch())
    assert stats["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert changed(model, before).isdisjoint(shared)
    assert changed(model, before)


def test_ties_across_shared_layers_are_told_to_the_caller():
    """GPT-2's output head is its embedding, which is shared and therefore frozen."""
    with pytest.warns(UserWarning, match="ties weights across the shared layers") as seen:
        PPOTrainer(tiny.config(), tiny.causal(), None, tiny.tokenizer(), num_shared_layers=1)
    (told,) = [w for w in seen if "ties weights" in str(w.message)]
    assert told.filename == __file__


def test_the_optimizer_is_adam_over_what_is_trained():
    model = tiny.causal()
    model.pretrained_model.transformer.wpe.requires_grad_(False)
    found = tiny.trainer(model, learning_rate=0.003)
    assert type(found.optimizer.optimizer) is torch.optim.Adam
    (group,) = found.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.003, 0)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]
    assert len(group["params"]) == len([*model.parameters()]) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_is_told_what_is_found_out(kind):
    config = trainer(kind, mini_batch_size=1, gradient_accumulation_steps=2).config
    assert (config.world_size, config.global_batch_size, config.global_backward_batch_size) == (1, 4, 2)
    assert (config.is_encoder_decoder, config.is_peft_model) == (kind == "t5", False)


# The loader


@pytest.mark.parametrize("kept", [True, False])
def test_columns_that_nothing_reads_are_dropped(kept):
    datasets = pytest.importorskip("datasets")
    names = ["input_ids", "attention_mask", "query", "response", "label", "junk"]
    rows = datasets.Dataset.from_dict({name: [[1, 2]] * 4 for name in names})
    found = tiny.trainer(remove_unused_columns=not kept)
    seen = next(iter(found.prepare_dataloader(rows, lambda samples: {*samples[0]})))
    assert seen == ({*names} if kept else {*names} - {"junk"})
    assert rows.column_names == names


@pytest.mark.parametrize("size, length", [(2, 0), (3, 1), (5, 1), (7, 2)])
def test_incomplete_batches_are_left_out(size, length):
    found = tiny.trainer(batch_size=3, mini_batch_size=3)
    loader = found.prepare_dataloader(Numbers(size))
    assert len(loader) == len(list(loader)) == length
    assert all(part["input_ids"].shape == (3, 3) for part in loader)


def test_batches_are_shuffled():
    """Each sample once an epoch, in another order each time: of 40! orders two are hardly the same."""
    loader = tiny.trainer().prepare_dataloader(Numbers(40))
    epochs = [[int(row[0]) for part in loader for row in part["input_ids"]] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(40)]] * 2
    assert epochs[0] != epochs[1]
    assert [*range(40)] not in epochs


# What is told


def tracked(folder, **changes):
    return tiny.trainer(log_with="tensorboard", project_kwargs={"logging_dir": str(folder)}, **changes)


def test_statistics_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = tracked(tmp_path, tracker_project_name="tried")
    data, texts = batch(), {"query": ["a", "b", "c", "d"], "response": ["e", "f", "g", "h"]}
    totals = []
    for _ in range(2):
        stats = found.step(*data)
        totals.append(stats["ppo/loss/total"])
        assert found.log_stats(stats, texts, [tensor(v) for v in (1.0, 2.0, 3.0, 6.0)]) is None
    found.accelerator.end_training()
    files = [*tmp_path.rglob("*tfevents*")]
    assert files
    assert all("tried" in str(file) for file in files)
    events = EventAccumulator(str(tmp_path / "tried"))
    events.Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert [e.value for e in scalars["env/reward_mean"]] == [3.0, 3.0]
    assert scalars["env/reward_std"][0].value == pytest.approx((14 / 3) ** 0.5)
    assert [e.step for e in scalars["ppo/loss/total"]] == [1, 2]
    assert [e.value for e in scalars["ppo/loss/total"]] == pytest.approx(totals, rel=1e-5)
    assert {"objective/kl", "ppo/learning_rate", "time/ppo/total"} <= {*scalars}


def test_a_column_that_is_missing_is_named(tmp_path):
    found = tracked(tmp_path)
    texts, rewards = {"query": ["a"] * 4, "answer": ["b"] * 4}, [tensor(1.0)] * 4
    with pytest.raises(ValueError, match="no column response to log, it has: query, answer"):
        found.log_stats({}, texts, rewards)
    found.log_stats({}, texts, rewards, columns_to_log=["query", "answer"])
    found.accelerator.end_training()


def test_without_a_tracker_nothing_is_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tiny.trainer()
    assert found.log_stats(found.step(*batch()), {}, []) is None
    assert not [*tmp_path.iterdir()]


def test_a_model_card_needs_no_hub(tmp_path):
    found = tiny.trainer(init_kl_coef=0.125)
    found.generate(batch()[0][0], **GREEDY)
    found.step(*batch())
    found.create_model_card(tmp_path / "deep" / "folder", "Some name")
    text = (tmp_path / "deep" / "folder" / "README.md").read_text()
    assert "# Some name\n" in text
    assert "1 steps of\n4 samples" in text
    assert "| init_kl_coef | 0.125 |" in text
    assert "| sampling: do_sample | False |" in text
    assert "# PPO model" in (found.create_model_card(tmp_path) or (tmp_path / "README.md").read_text())


# What is kept


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_saved_policy_comes_back(kind, tmp_path):
    from transformers import AutoTokenizer

    found = trainer(kind)
    data = batch(kind)
    found.step(*data)
    found.save_pretrained(tmp_path / "saved")
    loader = AutoModelForSeq2SeqLMWithValueHead if kind == "t5" else AutoModelForCausalLMWithValueHead
    again = loader.from_pretrained(tmp_path / "saved").eval()
    inputs = found.prepare_model_inputs(*data[:2])
    with torch.no_grad():
        for ours, theirs in zip(found.model.eval()(**inputs), again(**inputs), strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode("w5 w9") == [5, 9]
    assert "ray-align" in (tmp_path / "saved" / "README.md").read_text()


def test_a_saved_network_of_x_transformers_comes_back(tmp_path):
    description = x_config() | {"num_tokens": tiny.VOCABULARY}
    network = tiny.sharpened(XTransformersModel.random(description, seed=0).network)
    model = XTransformersWithValueHead(network, description=description)
    found = tiny.trainer(model, tiny.x_causal(1))
    found.step(*batch())
    found.save_pretrained(tmp_path)
    again = XTransformersWithValueHead.from_pretrained(tmp_path)
    for ours, theirs in zip(model(batch()[0][0][None]), again(batch()[0][0][None]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def pushed(found):
    """Try to push: the error; what is in memory stays as it was."""
    before, names = everything(found), [*found.model.state_dict()]
    with pytest.raises(
        ConnectionError, match=r"'somebody/something' could not be pushed.*Nothing has changed here"
    ) as seen:
        found.push_to_hub("somebody/something", token="hf_none")
    assert everything(found) == before
    assert [*found.model.state_dict()] == names
    assert not hasattr(found.model.pretrained_model, "v_head")
    return seen.value


def test_pushing_offline_changes_nothing(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1" in str(pushed(tiny.trainer()))


def test_pushing_without_a_network_changes_nothing(monkeypatch):
    """Nobody listens on this port of the own machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    pushed(tiny.trainer())


def resumable(kind, seed):
    """With everything that a run keeps beside its weights: momentum, moments, rate, coefficient, order."""
    model = policy(kind, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    config = tiny.config(use_score_scaling=True, use_score_norm=True, target=0.5, horizon=30.0, mini_batch_size=1)
    return PPOTrainer(config, model, policy(kind, 1), tiny.tokenizer(), optimizer=optimizer, lr_scheduler=scheduler)


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_is_as_if_there_had_been_no_stop(kind, tmp_path):
    whole, first = resumable(kind, 0), resumable(kind, 0)
    wanted = [whole.step(*batch(kind, seed=step)) for step in range(3)]
    for step in range(2):
        first.step(*batch(kind, seed=step))
    first.save_state(tmp_path)
    second = resumable(kind, 2)  # other weights
    second.step(*batch(kind, seed=5))  # and another history
    second.load_state(tmp_path)
    assert (second.current_step, second.running.count) == (2, 8)
    stats = second.step(*batch(kind, seed=2))
    same(stats, wanted[2], rtol=0, atol=0)
    assert torch.equal(flat(second.model), flat(whole.model))
    mine, theirs = everything(second), everything(whole)
    assert mine == theirs
    assert second.lr_scheduler.state_dict()["last_epoch"] == 3
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_random_numbers_go_on_as_well(tmp_path):
    found, query = tiny.trainer(), batch()[0][0]
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 20}
    found.generate(query, **options)
    found.save_state(tmp_path)
    wanted = found.generate(query, **options)
    again = tiny.trainer()
    again.load_state(tmp_path)
    assert torch.equal(again.generate(query, **options), wanted)


# Adapters


def adapted():
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    model = AutoModelForCausalLMWithValueHead(
        peft.get_peft_model(tiny.gpt2(), peft.LoraConfig(**options)), summary_dropout_prob=0.0
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)  # an adapter that is no longer the base model
    return model


def test_an_adapted_policy_is_compared_with_its_base():
    """Without a reference model: adapters off, the log-probs are the base model's, and only adapters and head learn."""
    model = adapted()
    found = tiny.trainer(model)
    assert found.ref_model is None
    assert found.config.is_peft_model
    queries, responses, scores = batch()
    before = weights(model)
    stats = found.step(queries, responses, scores)
    base = tiny.causal()
    inside = torch.zeros(stats["objective/ref_logprobs"].shape, dtype=torch.bool)
    for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
        inside[row, len(query) - 1 : len(query) - 1 + len(response)] = True
        wanted = plain(base, query, response)[0].numpy()
        assert stats["objective/ref_logprobs"][row][inside[row].numpy()] == pytest.approx(wanted, abs=1e-5)
        own = stats["objective/logprobs"][row][inside[row].numpy()]
        assert np.abs(own - wanted).max() > 1e-2
    moved = changed(model, before)
    assert moved
    assert all("lora_" in name or "v_head" in name for name in moved)
    assert any("lora_A" in name for name in moved)
    assert any("v_head" in name for name in moved)
    # And after the step the adapters are on again.
    with torch.no_grad():
        on = model(queries[0][None])[0]
        with model.pretrained_model.disable_adapter():
            off = model(queries[0][None])[0]
    assert (on - off).abs().max() > 1e-2


def test_an_adapter_goes_on_after_a_stop(tmp_path):
    whole, first, second = (tiny.trainer(adapted()) for _ in range(3))
    wanted = [whole.step(*batch(seed=step)) for step in range(2)][1]
    first.step(*batch(seed=0))
    first.save_state(tmp_path / "state")
    second.load_state(tmp_path / "state")
    same(second.step(*batch(seed=1)), wanted, rtol=0, atol=0)
    second.save_pretrained(tmp_path / "saved")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "saved").iterdir()
    }


def test_a_scheduler_of_another_optimizer_is_refused():
    model = tiny.causal()
    own, other = (torch.optim.SGD(model.parameters(), lr=1.0) for _ in range(2))
    with pytest.raises(ValueError, match="lr_scheduler is of another optimizer"):
        PPOTrainer(
            tiny.config(), model, tiny.causal(1), tiny.tokenizer(),
            optimizer=own, lr_scheduler=LambdaLR(other, lambda step: 1.0),
        )  # fmt: skip


def test_what_an_optimizer_leaves_out_is_told():
    model = tiny.causal()
    optimizer = torch.optim.SGD(model.pretrained_model.parameters(), lr=1.0)
    with pytest.warns(UserWarning, match=r"optimizer does not hold v_head.summary.weight, v_head.summary.bias: they"):
        PPOTrainer(tiny.config(), model, tiny.causal(1), tiny.tokenizer(), optimizer=optimizer)


@pytest.mark.parametrize("size", [0, 3])
def test_a_data_set_that_is_too_small_is_told(size):
    with pytest.warns(UserWarning, match=f"the data set has {size} samples, batch_size is 4: there is no batch"):
        assert len(tiny.trainer().prepare_dataloader(Numbers(size))) == 0


# States that are refused


@pytest.fixture
def saved(tmp_path):
    tiny.trainer().save_state(tmp_path / "state")
    return tmp_path / "state"


def refused(folder, text, trainer=None):
    found = trainer or tiny.trainer()
    before = everything(found)
    with pytest.raises(ValueError, match=text):
        found.load_state(folder)
    assert everything(found) == before


def test_a_folder_that_is_no_state(tmp_path):
    refused(tmp_path / "none", r"none holds no whole state of save_state \(FileNotFoundError\)\.$")


def test_a_state_without_a_part(saved):
    (saved / "random_states_0.pkl").unlink()
    refused(saved, "random_states_0.pkl is missing: load another state")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"])
def test_a_state_with_a_changed_byte(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(data)
    refused(saved, f"{name} is damaged: load another state")


def test_a_state_is_replaced_when_the_new_one_is_whole(saved):
    """A save that is cut off leaves the folder as it was; one cut off between two renames leaves the old state."""
    found = tiny.trainer()
    found.step(*tiny.batch())
    found.accelerator.save_state = lambda folder: 1 / 0
    with pytest.raises(ZeroDivisionError):
        found.save_state(saved)
    tiny.trainer().load_state(saved)
    saved.rename(saved.with_name("state.old"))
    refused(saved, r"A save was cut off: rename .*state.old, the state before it")
    del found.accelerator.save_state
    found.save_state(saved)
    tiny.trainer().load_state(saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["state"]


def test_a_state_with_another_reference(saved):
    """The reference is not in a state, and a copy of the trained policy would be another one."""
    refused(saved, "was saved with reference .* give as ref_model", tiny.trainer(ref_model=tiny.causal(2)))


def test_a_state_of_another_optimizer(saved):
    model = tiny.causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    refused(saved, "was saved with optimizer Adam, and this trainer has SGD", tiny.trainer(model, optimizer=optimizer))


def test_another_configuration_is_told(saved):
    with pytest.warns(
        UserWarning, match=r"another configuration .* stay as they were saved: gamma = 0.5 \(then 1.0\)$"
    ):
        tiny.trainer(gamma=0.5).load_state(saved)


def test_a_reference_with_another_value_head_is_the_same_reference(saved):
    """A head that no file holds is drawn anew by each process, and no reference is asked for values."""
    model = tiny.causal()
    with torch.no_grad():
        for parameter in model.v_head.parameters():
            parameter.add_(1.0)
    tiny.trainer(model).load_state(saved)
