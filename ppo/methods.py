"""The methods that a trainer's subclass may override: the calls of a step, their order, and what cannot be taken."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppo.core import stack_dicts
from ppo.report import gathered
from ppo.update import Batch

# How a trainer calls its own methods, as TRL 0.11 does: positional arguments, and keywords.
CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "_early_stop": (1, ()),
    "_generate_batched": (2, ("length_sampler", "batch_size", "return_prompt")),
    "_kl_penalty": (2, ()),
    "_prepare_deepspeed": (1, ()),
    "_remove_unused_columns": (1, ()),
    "_save_pretrained": (1, ()),
    "_set_signature_columns_if_needed": (0, ()),
    "_step_safety_checker": (5, ()),
    "batched_forward_pass": (4, ("return_logits", "response_masks")),
    "compute_advantages": (3, ()),
    "compute_rewards": (4, ()),
    "create_model_card": (1, ()),
    "gather_stats": (1, ()),
    "loss": (8, ()),
    "prepare_dataloader": (2, ()),
    "prepare_model_inputs": (2, ()),
    "record_step_stats": (0, (
        "kl_coef", "masks", "scores", "logprobs", "ref_logprobs", "non_score_reward", "kls", "queries", "responses",
        "train_stats",
    )),
    "train_minibatch": (8, ()),
}  # fmt: skip
# What a step does itself, faster, as long as nobody overrides one of them.
OF_AN_UPDATE = ("batched_forward_pass", "train_minibatch", "loss")
# What TRL's classes call and nothing here does, with what to override for it.
NOT_CALLED = {"generate_model_card": "create_model_card"}


def refuse_deaf_overrides(cls: type, trainer: type) -> None:
    """Look at what a subclass of `trainer` overrides, itself or by what else it inherits from.

    Raises:
        TypeError: a method that would not be called, or cannot take what it would be called with.
    """
    for name, instead in NOT_CALLED.items():
        if _overrides(cls, trainer, name):
            raise TypeError(f"{cls.__name__}.{name} would never be called: override {instead} in its place")
    for name, (number, keywords) in CALLS.items():
        if not _overrides(cls, trainer, name):
            continue
        given = inspect.getattr_static(cls, name)
        bound = getattr(cls, name)
        own = [] if isinstance(given, (staticmethod, classmethod, partial)) else [None]  # self
        if not callable(bound):
            raise TypeError(f"{cls.__name__}.{name} is {given!r}, and a step calls it: make it a method")
        signature = inspect.signature(bound)
        try:
            signature.bind(*own, *[None] * number, **dict.fromkeys(keywords))
        except TypeError as error:
            told = f"{number} arguments" + (f" and {', '.join(keywords)} by name" if keywords else "")
            raise TypeError(
                f"{cls.__name__}.{name}{signature} cannot take what a step calls it with, {told} ({error}): give it "
                f"the parameters of ppo.PPOTrainer.{name}, which are those of TRL 0.6 to 0.11"
            ) from None


def _overrides(cls: type, trainer: type, name: str) -> bool:
    return inspect.getattr_static(cls, name) is not inspect.getattr_static(trainer, name)


def run_by_methods(
    trainer: Any, batch: Batch, queries: Sequence[Tensor], responses: Sequence[Tensor]
) -> dict[str, Tensor]:
    """All epochs of a step by the trainer's own `batched_forward_pass`, `train_minibatch` and `loss`, as TRL has them.

    The losses of the mini-batches of an update are averaged, whatever their numbers of tokens.

    Returns:
        The statistics of all mini-batches and ranks: a row for each; of advantages and ratios one row of all.
    """
    config, engine, updates = trainer.config, trainer.engine, trainer.updates
    met: list[Mapping[str, Any]] = []
    for _ in range(config.ppo_epochs):
        permutation = torch.from_numpy(updates.ordered(batch)).to(batch.mask.device)
        epoch: list[Mapping[str, Any]] = []
        for at in permutation.split(config.backward_batch_size):
            parts = at.split(config.mini_batch_size)
            engine.drop()
            for i, part in enumerate(parts):
                with engine.window(len(parts), last=i == len(parts) - 1):
                    epoch.append(_mini_batch(trainer, batch, part, queries, responses))
        met += epoch
        if config.early_stopping and trainer._early_stop(_policykl(trainer, epoch)):
            break
    everybody = gathered(
        [{k: torch.as_tensor(v).detach().cpu() for k, v in one.items()} for one in met], engine.accelerator
    )
    told = stack_dicts(everybody)
    for name in ("policy/advantages", "policy/ratio"):
        if name in told:
            told[name] = torch.cat([one[name].flatten() for one in everybody])[None]
    if "policy/skipped" in told:
        told["policy/skipped"] = told["policy/skipped"].sum(0, keepdim=True)
        updates.say_skipped(int(told["policy/skipped"]), len(everybody))
    return told


def _mini_batch(
    trainer: Any, batch: Batch, part: Tensor, queries: Sequence[Tensor], responses: Sequence[Tensor]
) -> Mapping[str, Any]:
    rows = part.tolist()
    inputs = {name: tensor[part] for name, tensor in batch.inputs.items()}
    logprobs, logits, vpreds, _ = trainer.batched_forward_pass(
        trainer.model, [queries[i] for i in rows], [responses[i] for i in rows], inputs, return_logits=True
    )
    old, values, mask = batch.logprobs[part], batch.values[part], batch.mask[part]
    advantages, returns = batch.advantages[part], batch.returns[part]
    return trainer.train_minibatch(old, values, logprobs, logits, vpreds, mask, advantages, returns)


def _policykl(trainer: Any, epoch: list[Mapping[str, Any]]) -> Tensor:
    """The policykl that an epoch is judged by, averaged over ranks."""
    looked_at = epoch[-1:] if trainer.config.early_stopping_over == "last" else epoch
    own = torch.stack([torch.as_tensor(one["policy/policykl"]).double() for one in looked_at]).mean()
    return trainer.updates.reduce(own.to(trainer.device)) / trainer.accelerator.num_processes
