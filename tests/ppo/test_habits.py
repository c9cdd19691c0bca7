"""What old scripts are used to: names of attributes, options in two places, a wrapped optimizer, helpers."""

from functools import partial

import numpy as np
import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch.optim.lr_scheduler import ExponentialLR
from transformers import DataCollatorForLanguageModeling, GenerationConfig

from ppo import PPOTrainer, core
from tests.ppo import tiny
from tests.ppo.models_tiny import lora
from tests.ppo.trials import QUIET, batch, flat

pytestmark = QUIET


# generate: options as keywords or in a generation_config


SAMPLED = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 8, "eos_token_id": [5, 6, 7]}


def test_a_generation_config_and_keywords_are_one():
    """Same draw, same responses, cut at the same end tokens; and nothing is off-policy."""
    found = tiny.trainer()
    queries = batch()[0]
    answers = []
    for options in (SAMPLED, {"generation_config": GenerationConfig(**SAMPLED)}):
        torch.manual_seed(3)
        answers.append(found.generate(queries, return_prompt=False, **options))
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)
        assert not torch.isin(a[:-1], torch.tensor([5, 6, 7])).any()
    assert any(len(a) < 8 for a in answers[1])
    assert found.sampling["max_new_tokens"] == 8


def test_what_is_off_policy_is_seen_in_either_place():
    found = tiny.trainer()
    with pytest.warns(UserWarning, match="sampled with top_k = 3"):
        found.generate(batch()[0], generation_config=GenerationConfig(do_sample=True, top_k=3, max_new_tokens=2))
    config = GenerationConfig(do_sample=True, top_k=3, max_new_tokens=2)
    with pytest.warns(UserWarning, match="sampled with top_p = 0.5"):  # the keyword counts more
        found.generate(batch()[0], generation_config=config, top_k=0, top_p=0.5)
    with pytest.raises(ValueError, match="num_return_sequences"):
        found.generate(batch()[0], generation_config=GenerationConfig(num_return_sequences=2))


def test_a_good_generation_config_is_not_warned_of(recwarn):
    tiny.trainer().generate(batch()[0], generation_config=GenerationConfig(**SAMPLED))
    assert not [w for w in recwarn if "sampled with" in str(w.message)]


# A padding token may come later


def test_the_padding_token_may_come_after_the_trainer():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    with pytest.warns(UserWarning, match="no padding token yet"):
        found = PPOTrainer(tiny.config(), tiny.causal(), tiny.causal(1), tokenizer)
    for use in (lambda: found.step(*batch()), lambda: found.generate(batch()[0], max_new_tokens=2)):
        with pytest.raises(ValueError, match=r"no padding token: set tokenizer.pad_token = tokenizer.eos_token"):
            use()
    tokenizer.pad_token = tokenizer.eos_token
    assert len(found.generate(batch()[0], max_new_tokens=2)) == 4
    assert np.isfinite(found.step(*batch())["ppo/loss/total"])


# The optimizer


def test_gradients_stay_where_the_caller_says_so():
    found, plain = tiny.trainer(), tiny.trainer()
    found.optimizer.zero_grad = partial(found.optimizer.zero_grad, set_to_none=False)
    for one in (found, plain):
        one.step(*batch())
    assert all(p.grad is not None and not p.grad.any() for p in found.model.parameters())
    assert all(p.grad is None for p in plain.model.parameters())
    assert torch.equal(flat(found.model), flat(plain.model))


def test_optimizer_and_scheduler_are_accelerates():
    model = tiny.causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    found = PPOTrainer(
        tiny.config(), model, tiny.causal(1), tiny.tokenizer(), optimizer=optimizer, lr_scheduler=scheduler
    )
    assert found.optimizer.optimizer is optimizer
    assert found.lr_scheduler.scheduler is scheduler
    assert [found.step(*batch())["ppo/learning_rate"] for _ in range(2)] == [0.5, 0.25]


# Attributes


def test_attributes_that_subclasses_read():
    found = tiny.trainer()
    assert found.current_device == found.device == found.accelerator.device
    assert [id(p) for p in found.model_params] == [id(p) for p in found.model.parameters() if p.requires_grad]
    assert isinstance(found.data_collator, DataCollatorForLanguageModeling)
    assert isinstance(found, PyTorchModelHubMixin)
    with found.optional_peft_ctx():
        pass


def test_the_context_of_the_reference_disables_adapters():
    pytest.importorskip("peft")
    from peft import get_peft_model

    from ppo import AutoModelForCausalLMWithValueHead
    from tests.ppo.models_tiny import tiny as models

    base = get_peft_model(models("llama"), lora(init_lora_weights=False))
    model = AutoModelForCausalLMWithValueHead(base)
    tokens = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), tiny.trainer(model).optional_peft_ctx():
        off = model(tokens)[0]
    with torch.no_grad(), base.disable_adapter():
        wanted = base(tokens).logits
    assert torch.equal(off, wanted)
    assert not torch.equal(model(tokens)[0], wanted)


def test_a_training_collator_of_ones_own():
    """It pads to 16 and gives labels, which no language model loss is computed of."""
    seen = []

    def collator(rows):
        seen.append(len(rows))
        assert {*rows[0]} == {"input_ids", "attention_mask"}
        width = 16
        ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        for i, row in enumerate(rows):
            ids[i, : len(row["input_ids"])], mask[i, : len(row["input_ids"])] = row["input_ids"], 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids}

    model = tiny.causal()
    mine = PPOTrainer(tiny.config(), model, tiny.causal(1), tiny.tokenizer(), training_data_collator=collator)
    told, wanted = mine.step(*batch()), tiny.trainer().step(*batch())
    assert seen == [4]
    assert told["objective/logprobs"].shape == (4, 15)
    assert told["ppo/loss/total"] == pytest.approx(wanted["ppo/loss/total"], rel=1e-5)


def test_saving_takes_no_push():
    with pytest.raises(TypeError, match=r"call push_to_hub\(repo_id\)"):
        tiny.trainer().save_pretrained("somewhere", push_to_hub=True)


def test_a_kl_that_is_none_names_both_causes():
    found = tiny.trainer()
    found.kl_ctl.value = 0.0
    stats = {"objective/kl": -5.0, "ppo/mean_scores": 0.0}
    with pytest.warns(UserWarning, match="sampled from another distribution .* or the policy has diverged"):
        found._finished(stats, {}, 0.0)


# Helpers of trl.core


def test_dictionaries_are_flattened_and_stacked():
    assert core.flatten_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a/b": 1, "a/c/d": 2, "e": 3}
    with pytest.raises(ValueError, match="'a/b' has '/' in it"):
        core.flatten_dict({"a/b": 1})
    stacked = core.stack_dicts(
        [{"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(3.0)}, {"x": torch.tensor(4.0), "y": 5.0}]
    )
    assert stacked["x"].tolist() == [[1.0, 2.0], [4.0, -1.0]]
    assert stacked["y"].tolist() == [[3.0], [5.0]]


def test_statistics_become_numbers():
    given = {"a": torch.tensor([1.5], dtype=torch.bfloat16), "b": torch.tensor([1, 2]), "c": 3, "d": "word"}
    plain = core.stats_to_np(given)
    assert [type(value) for value in plain.values()] == [np.ndarray, np.ndarray, float, str]
    assert core.convert_to_scalar(plain)["a"] == 1.5
    assert core.convert_to_scalar(plain)["b"].tolist() == [1, 2]


def test_filters_leave_the_likely_tokens():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert core.top_k_top_p_filtering(logits, top_k=2).isinf().tolist() == [[False, False, True, True]]
    assert core.top_k_top_p_filtering(logits, top_p=0.7).isinf().tolist() == [[False, False, True, True]]
    assert torch.equal(core.top_k_top_p_filtering(logits), logits)


def test_responses_without_a_trainer():
    """With one token left to choose it is the likeliest, each time."""
    model, queries = tiny.causal(), torch.tensor([[3, 4], [5, 6]])
    found = core.respond_to_batch(model, queries, txt_len=5, top_k=1)
    tokens = queries
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens)[0][:, -1:].argmax(-1)], dim=-1)
    assert torch.equal(found, tokens[:, 2:])
