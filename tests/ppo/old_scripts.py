"""Loops as scripts for old TRL have them, on tiny models. They take the library, and run with TRL 0.11.4 as well.

`python -m tests.ppo.old_scripts LIBRARY [NAME ...]` prints what each gives, as JSON; examples/results tells how.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, HfArgumentParser

from tests.ppo import tiny
from tests.ppo.models_tiny import lora, saved_reward_adapter
from tests.ppo.models_tiny import tiny as models

TEXTS = [f"w{a} w{a + 3} w{a + 7}" if a % 2 else f"w{a} w{a + 3}" for a in range(2, 14)]
KEPT = ("objective/kl", "ppo/loss/policy", "ppo/loss/value", "ppo/mean_scores", "ppo/policy/entropy", "ppo/val/error")
SAMPLED: dict[str, Any] = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True}


def kept(stats: Any) -> dict[str, float]:
    return {name: float(stats[name]) for name in KEPT}


def with_head(trl: Any, source: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    options = {"v_head_init_strategy": "normal", "summary_dropout_prob": 0.0} | options
    model = trl.AutoModelForCausalLMWithValueHead.from_pretrained(source, **options)
    torch.manual_seed(3)  # what is loaded beside the head draws numbers too, in another order
    torch.nn.init.normal_(model.v_head.summary.weight, std=0.2)
    return model


def collator(data: list[Any]) -> dict[str, list[Any]]:
    return {key: [d[key] for d in data] for key in data[0]}


def prompts(tokenizer: Any) -> Any:
    """Rows of text and tokens, as tensors."""
    rows = Dataset.from_dict({"text": TEXTS})

    def tokenize(sample: Any) -> Any:
        sample["input_ids"] = tokenizer.encode(sample["text"])
        sample["query"] = tokenizer.decode(sample["input_ids"])
        return sample

    rows = rows.map(tokenize, batched=False)
    rows.set_format(type="torch")
    return rows


def share_of(words: list[str], text: str) -> torch.Tensor:
    """A reward: how many of the words of a text are among these."""
    said = text.split()
    return torch.tensor(sum(word in words for word in said) / max(len(said), 1))


def hello_world(trl: Any) -> list[Any]:
    """One query, one response, one step."""
    model, reference = with_head(trl, tiny.gpt2()), with_head(trl, tiny.gpt2(1))
    tokenizer = tiny.tokenizer()
    config = trl.PPOConfig(batch_size=1, mini_batch_size=1)
    trainer = trl.PPOTrainer(config, model, reference, tokenizer)
    query = tokenizer.encode("w5 w9 w3", return_tensors="pt").to(trainer.current_device)
    torch.manual_seed(2)
    options = SAMPLED | {"pad_token_id": tokenizer.eos_token_id, "max_new_tokens": 6}
    response = trainer.generate(list(query), return_prompt=False, **options)
    assert tokenizer.decode(response[0])
    return [kept(trainer.step([query[0]], [response[0]], [torch.tensor(1.0, device=trainer.current_device)]))]


def sentiment(trl: Any) -> list[Any]:
    """A data set, a loader, a sampler of lengths, texts that a classifier scores, and a folder at the end."""
    config = trl.PPOConfig(
        model_name="tiny", learning_rate=1e-3, log_with=None, batch_size=4, mini_batch_size=4, ppo_epochs=2
    )
    tokenizer = tiny.tokenizer()
    model, reference = with_head(trl, tiny.gpt2()), with_head(trl, tiny.gpt2(1))
    trainer = trl.PPOTrainer(config, model, reference, tokenizer, dataset=prompts(tokenizer), data_collator=collator)
    torch.manual_seed(2)
    found = []
    for epoch, batch in enumerate(trainer.dataloader):
        torch.manual_seed(epoch)
        queries = batch["input_ids"]
        options = SAMPLED | {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": -1}
        responses = []
        for query in queries:
            options["max_new_tokens"] = 3 + epoch
            responses.append(trainer.generate(query, **options).squeeze()[-options["max_new_tokens"] :])
        batch["response"] = [tokenizer.decode(r.squeeze()) for r in responses]
        rewards = [
            share_of(["w3", "w5", "w8", "w13"], q + " " + r)
            for q, r in zip(batch["query"], batch["response"], strict=True)
        ]
        stats = trainer.step(queries, responses, rewards)
        trainer.log_stats(stats, batch, rewards)
        found.append(kept(stats))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = trl.AutoModelForCausalLMWithValueHead.from_pretrained(folder)
    assert torch.equal(again.v_head.summary.weight, model.v_head.summary.weight)
    return found


def stack_llama(trl: Any) -> list[Any]:
    """An adapter on the policy, no reference, accumulation, and the keys of a big run's configuration."""
    config = trl.PPOConfig(
        steps=100, model_name="tiny", learning_rate=1e-3, log_with=None, batch_size=4, mini_batch_size=2,
        gradient_accumulation_steps=2, optimize_cuda_cache=True, early_stopping=False, target_kl=0.1, ppo_epochs=2,
        seed=0, init_kl_coef=0.2, adap_kl_ctrl=True,
    )  # fmt: skip
    tokenizer = tiny.tokenizer()
    torch.manual_seed(4)
    model = with_head(trl, models("llama"), peft_config=lora(init_lora_weights=False))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.learning_rate)
    trainer = trl.PPOTrainer(
        config, model, ref_model=None, tokenizer=tokenizer, dataset=prompts(tokenizer), data_collator=collator,
        optimizer=optimizer,
    )  # fmt: skip
    torch.manual_seed(2)
    found = []
    options = SAMPLED | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": 100_000, "max_new_tokens": 5}
    options["suppress_tokens"] = [tokenizer.eos_token_id]  # all of one length: TRL averages means of micro-batches
    for epoch, batch in enumerate(trainer.dataloader):
        if epoch == 2:
            break  # with the last batch of a loader TRL ends accumulation
        torch.manual_seed(epoch)
        questions = batch["input_ids"]
        responses = trainer.generate(questions, return_prompt=False, **options)
        batch["response"] = tokenizer.batch_decode(responses, skip_special_tokens=True)
        rewards = [share_of(["w3", "w5"], text) - 0.5 for text in batch["response"]]
        stats = trainer.step(questions, responses, rewards)
        trainer.log_stats(stats, batch, rewards)
        found.append(kept(stats))
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_pretrained(folder)
    return found


@dataclass
class ScriptArguments:
    use_seq2seq: bool = field(default=False, metadata={"help": "Whether to use seq2seq."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Enable it."})


def parser(trl: Any) -> list[Any]:
    """The configuration from the command line, beside the script's own arguments."""
    words = (
        "--batch_size 4 --mini_batch_size 2 --learning_rate 1e-3 --ppo_epochs 1 --kl_penalty abs --query_dataset mine"
    )
    both = HfArgumentParser((ScriptArguments, trl.PPOConfig))  # type: ignore[arg-type]
    args, config = both.parse_args_into_dataclasses(words.split())
    assert config.query_dataset == "mine"
    assert "distilbert" in config.reward_model
    trl.set_seed(config.seed)
    tokenizer = tiny.tokenizer()
    model = with_head(trl, tiny.gpt2(), trust_remote_code=args.trust_remote_code)
    reference = with_head(trl, tiny.gpt2(1), trust_remote_code=args.trust_remote_code)
    trainer = trl.PPOTrainer(config, model, reference, tokenizer, dataset=prompts(tokenizer), data_collator=collator)
    torch.manual_seed(2)
    found = []
    options = SAMPLED | {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": -1, "max_new_tokens": 4}
    for _, batch in zip(range(2), trainer.dataloader, strict=False):
        torch.manual_seed(5)
        responses, references = trainer.generate(
            batch["input_ids"], return_prompt=False, generate_ref_response=True, **options
        )
        batch["response"], batch["ref_response"] = map(tokenizer.batch_decode, (responses, references))
        rewards = [share_of(["w4"], text) for text in batch["response"]]
        stats = trainer.step(batch["input_ids"], responses, rewards)
        trainer.log_stats(stats, batch, rewards, columns_to_log=["query", "response", "ref_response"])
        found.append(kept(stats))
    return found


def t5(trl: Any) -> list[Any]:
    """An encoder-decoder. TRL leaves the first token of a response untrained: its numbers are others."""
    config = trl.PPOConfig(batch_size=4, mini_batch_size=4, learning_rate=1e-3, ppo_epochs=2)
    tokenizer = tiny.tokenizer()
    torch.manual_seed(1)
    options = {"v_head_init_strategy": "normal", "summary_dropout_prob": 0.0}
    model, reference = (trl.AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny.t5(s), **options) for s in (0, 1))
    trainer = trl.PPOTrainer(config, model, reference, tokenizer, dataset=prompts(tokenizer), data_collator=collator)
    torch.manual_seed(2)
    found = []
    for _, batch in zip(range(2), trainer.dataloader, strict=False):
        torch.manual_seed(5)
        responses = trainer.generate(batch["input_ids"], do_sample=True, top_k=0, eos_token_id=-1, max_new_tokens=4)
        batch["response"] = tokenizer.batch_decode([r[1:] for r in responses])
        rewards = [share_of(["w4", "w7"], text) for text in batch["response"]]
        found.append(kept(trainer.step(batch["input_ids"], responses, rewards)))
    return found


def multi_adapter(trl: Any) -> list[Any]:
    """Two adapters on one model: the policy's, and that of the reward model, which scores query and response."""
    tokenizer = tiny.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        saved_reward_adapter(folder)
        torch.manual_seed(4)
        model = with_head(trl, models("llama"), peft_config=lora(init_lora_weights=False), reward_adapter=folder)
    config = trl.PPOConfig(
        model_name="tiny", log_with=None, learning_rate=1e-3, batch_size=4, mini_batch_size=2, ppo_epochs=1,
        gradient_accumulation_steps=2, optimize_cuda_cache=True, use_score_scaling=False, use_score_norm=False,
        score_clip=None,
    )  # fmt: skip
    trainer = trl.PPOTrainer(
        config, model, ref_model=None, tokenizer=tokenizer, dataset=prompts(tokenizer), data_collator=collator
    )
    torch.manual_seed(2)
    found = []
    for _, batch in zip(range(2), trainer.dataloader, strict=False):
        torch.manual_seed(5)
        responses = trainer.generate(
            batch["input_ids"], return_prompt=False, max_new_tokens=4, eos_token_id=100_000, **SAMPLED
        )
        texts = [query + " " + tokenizer.decode(r) for query, r in zip(batch["query"], responses, strict=True)]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        rewards = [row[-1, 0] for row in trainer.model.compute_reward_score(**inputs)]
        found.append(kept(trainer.step(batch["input_ids"], responses, rewards)))
    return found


def factory(trl: Any) -> list[Any]:
    """A subclass with its own forward pass, its own sampling by a generation config, and its own loop."""
    core = import_module(f"{trl.__name__}.core")

    class Custom(trl.PPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.generation_config = GenerationConfig(
                pad_token_id=self.tokenizer.pad_token_id, eos_token_id=[22, 23], max_new_tokens=6, min_new_tokens=6,
                do_sample=True, top_k=0,
            )  # fmt: skip

        def train_all(self) -> list[Any]:
            found = []
            torch.manual_seed(2)
            for _, batch in zip(range(2), self.dataloader, strict=False):
                self.model.eval()
                queries, responses = self.inputs_of(batch["input_ids"])
                rewards = [share_of(["w3"], self.tokenizer.decode(r)) for r in responses]
                self.model.train()
                found.append(kept(self.step(queries, responses, rewards)))
            return found

        @torch.no_grad()
        def inputs_of(self, ids: list[Any]) -> Any:
            torch.manual_seed(7)
            batch = {"input_ids": ids, "attention_mask": [torch.ones_like(each) for each in ids]}
            padded = self.tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(self.current_device)
            model = self.accelerator.unwrap_model(self.model)
            out = model.generate(generation_config=self.generation_config, **padded)
            return list(ids), list(out[:, padded["input_ids"].size(-1) :])

        @core.PPODecorators.empty_device_cache()
        def batched_forward_pass(
            self, model: Any, queries: Any, responses: Any, model_inputs: Any, return_logits: Any = False,
            response_masks: Any = None,
        ) -> Any:  # fmt: skip
            """All rows at once, whatever the size of a mini-batch is."""
            logits, _, values = model(**model_inputs, return_dict=True, use_cache=False)
            ids, mask = model_inputs["input_ids"], model_inputs["attention_mask"]
            logprobs = core.logprobs_from_logits(logits[:, :-1], ids[:, 1:])
            masks = torch.zeros_like(mask)
            masks[:, :-1] = mask[:, 1:]
            for j, (query, response) in enumerate(zip(queries, responses, strict=True)):
                start = len(query) - 1
                masks[j, :start] = 0
                masks[j, start + len(response) :] = 0
            return logprobs, logits[:, :-1] if return_logits else None, values[:, :-1], masks[:, :-1]

    tokenizer = tiny.tokenizer()
    model, reference = with_head(trl, tiny.gpt2()), with_head(trl, tiny.gpt2(1))
    config = trl.PPOConfig(
        model_name="tiny", learning_rate=1e-3, mini_batch_size=2, batch_size=4, gradient_accumulation_steps=2,
        ppo_epochs=2, max_grad_norm=1e6, seed=0, optimize_device_cache=True, target=6.0, use_score_scaling=False,
        use_score_norm=False, whiten_rewards=False, accelerator_kwargs={"step_scheduler_with_optimizer": False},
        project_kwargs={"logging_dir": None},
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trainer = Custom(
        config=config, model=model, ref_model=reference, tokenizer=tokenizer, dataset=prompts(tokenizer),
        optimizer=optimizer, data_collator=collator, lr_scheduler=scheduler,
    )  # fmt: skip
    return trainer.train_all()


SCRIPTS = {
    "hello_world": hello_world,
    "sentiment": sentiment,
    "stack_llama": stack_llama,
    "parser": parser,
    "t5": t5,
    "multi_adapter": multi_adapter,
    "factory": factory,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    library, *names = sys.argv[1:]
    print(json.dumps({name: SCRIPTS[name](import_module(library)) for name in names or SCRIPTS}, indent=1))
