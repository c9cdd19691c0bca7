"""Refusals of a PPOTrainer before it starts."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from dpo.lm import model_config
from ppo.config import PPOConfig
from ppo.models.wrapper import PreTrainedModelWrapper
from ppo.models.x_transformers import XTransformersWithValueHead
from ppo.said import warn

ValueModel = PreTrainedModelWrapper | XTransformersWithValueHead
MODELS = (PreTrainedModelWrapper, XTransformersWithValueHead)
NAMES = "AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead or XTransformersWithValueHead"


def check_arguments(
    config: Any, model: Any, ref_model: Any, tokenizer: Any, dataset: Any, optimizer: Any, lr_scheduler: Any
) -> None:
    """Raise a ValueError for the first argument of a wrong type; the message gives the type and the one wanted."""
    _must_be("config", config, PPOConfig, "a ppo.PPOConfig")
    config.check()
    _must_be("model", model, MODELS, NAMES)
    if config.gradient_checkpointing and isinstance(model, XTransformersWithValueHead):
        raise ValueError("gradient_checkpointing = True: x-transformers models cannot compute activations again")
    if ref_model is not None:
        _must_be("ref_model", ref_model, MODELS, f"{NAMES}, or None")
        if ref_model is model:
            raise ValueError("ref_model is model: the reference would move with the policy; give None for a copy")
        if ref_model.is_encoder_decoder != model.is_encoder_decoder:
            raise ValueError("model and ref_model must be of one kind: one of them is an encoder-decoder")
        own, other = vocabulary(model), vocabulary(ref_model)
        if own != other:
            raise ValueError(f"model knows {own} tokens and ref_model {other}: they must be of one vocabulary")
    _must_be("tokenizer", tokenizer, PreTrainedTokenizerBase, "a tokenizer of transformers")
    if tokenizer.pad_token_id is None:
        warn("the tokenizer has no padding token yet: set tokenizer.pad_token = tokenizer.eos_token before a step")
    else:
        padding_token(tokenizer, vocabulary(model))
    if dataset is not None:
        library = sys.modules.get("datasets")  # what is a data set of that library can only come from it
        kinds = (torch.utils.data.Dataset, *([library.Dataset] if library is not None else []))
        _must_be("dataset", dataset, kinds, "a torch.utils.data.Dataset or a datasets.Dataset")
    if optimizer is not None:
        _must_be("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
        _check_optimizer(model, optimizer)
    if lr_scheduler is not None:
        _must_be("lr_scheduler", lr_scheduler, LRScheduler, "a torch.optim.lr_scheduler.LRScheduler")
        if optimizer is None:
            raise ValueError("lr_scheduler changes the learning rates of its own optimizer: give that optimizer too")
        if lr_scheduler.optimizer is not optimizer:
            raise ValueError("lr_scheduler is of another optimizer: make it of the one that is given")


def padding_token(tokenizer: Any, known: int) -> int:
    """The padding token's id, where padding is needed; `known`: how many tokens the model has embeddings for.

    Raises:
        ValueError: there is none, or the model does not know it.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token")
    if tokenizer.pad_token_id >= known:
        raise ValueError(
            f"the padding token is {tokenizer.pad_token_id}, and the model knows {known} tokens: set "
            "tokenizer.pad_token = tokenizer.eos_token, or resize the model's embeddings"
        )
    return tokenizer.pad_token_id


def vocabulary(model: ValueModel) -> int:
    """How many tokens a model has embeddings for."""
    size = model_config.vocabulary_size(_described(model))
    assert size is not None, "embeddings have a size"
    return size


def position_limit(model: ValueModel) -> int | None:
    """The longest sequence that a model with learned positions can read; None where nothing limits it."""
    return model_config.position_limit(_described(model), learned=True)


def _described(model: ValueModel) -> dict[str, Any]:
    """The sizes of a model as its config.json would tell them; embeddings may have been resized since."""
    if isinstance(model, PreTrainedModelWrapper):
        size = model.pretrained_model.get_input_embeddings().num_embeddings
        return model.config.get_text_config().to_dict() | {"vocab_size": size}
    network = model.pretrained_model
    positions = "rotary" if network.can_cache_kv_outside_max_seq_len else "absolute"
    sizes = {"num_tokens": network.num_tokens, "max_seq_len": network.max_seq_len}
    return {"model_type": "x-transformers", "positions": positions, **sizes}


def check_generation(batch_size: int, length_sampler: Any, options: dict[str, Any]) -> None:
    """Raise a ValueError for what `generate` cannot do; `options` as `ppo.generation.merged` gives them."""
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    if length_sampler is not None and not callable(length_sampler):
        raise ValueError(f"length_sampler = {length_sampler!r} must be callable, such as ppo.LengthSampler(4, 16)")
    if options.get("num_return_sequences", 1) != 1:
        raise ValueError("num_return_sequences: give each query as often as there are to be responses to it")
    if options.get("return_dict_in_generate"):
        raise ValueError("return_dict_in_generate: only the responses come out of generate, as tensors")


def _check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = [(name, id(p)) for name, p in model.named_parameters() if p.requires_grad]
    left_out = [name for name, number in trained if number not in held]
    if len(left_out) == len(trained):
        raise ValueError("optimizer holds no trainable parameter of model: make it of model.parameters()")
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warn(f"optimizer does not hold {', '.join(left_out[:3])}{more}: they are not trained")


def _must_be(name: str, value: Any, kinds: Any, wanted: str) -> None:
    if not isinstance(value, kinds):
        raise ValueError(f"{name} must be {wanted}, not {type(value).__module__}.{type(value).__qualname__}")
