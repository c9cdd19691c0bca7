"""What a PPOTrainer refuses before it starts."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from ppo.config import PPOConfig
from ppo.models.wrapper import PreTrainedModelWrapper
from ppo.models.x_transformers import XTransformersWithValueHead

ValueModel = PreTrainedModelWrapper | XTransformersWithValueHead
MODELS = (PreTrainedModelWrapper, XTransformersWithValueHead)
NAMES = "AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead or XTransformersWithValueHead"


def check_arguments(
    config: Any, model: Any, ref_model: Any, tokenizer: Any, dataset: Any, optimizer: Any, lr_scheduler: Any
) -> None:
    """Raise a ValueError for the first argument of a wrong type; the message gives the type and the one wanted."""
    _must_be("config", config, PPOConfig, "a ppo.PPOConfig")
    _must_be("model", model, MODELS, NAMES)
    if config.gradient_checkpointing and isinstance(model, XTransformersWithValueHead):
        raise ValueError("gradient_checkpointing = True: x-transformers models cannot compute activations again")
    if ref_model is not None:
        _must_be("ref_model", ref_model, MODELS, f"{NAMES}, or None")
        if ref_model is model:
            raise ValueError("ref_model is model: the reference would move with the policy; give None for a copy")
        if ref_model.is_encoder_decoder != model.is_encoder_decoder:
            raise ValueError("model and ref_model must be of one kind: one of them is an encoder-decoder")
    _must_be("tokenizer", tokenizer, PreTrainedTokenizerBase, "a tokenizer of transformers")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token")
    if dataset is not None:
        library = sys.modules.get("datasets")  # what is a data set of that library can only come from it
        kinds = (torch.utils.data.Dataset, *([library.Dataset] if library is not None else []))
        _must_be("dataset", dataset, kinds, "a torch.utils.data.Dataset or a datasets.Dataset")
    if optimizer is not None:
        _must_be("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    if lr_scheduler is not None:
        _must_be("lr_scheduler", lr_scheduler, LRScheduler, "a torch.optim.lr_scheduler.LRScheduler")
        if optimizer is None:
            raise ValueError("lr_scheduler changes the learning rates of its own optimizer: give that optimizer too")


def _must_be(name: str, value: Any, kinds: Any, wanted: str) -> None:
    if not isinstance(value, kinds):
        raise ValueError(f"{name} must be {wanted}, not {type(value).__module__}.{type(value).__qualname__}")
