"""PEFT adapters: what is one, and the reward adapter that turns a policy into a reward model for one forward.

PEFT is an optional dependency: it is imported where an adapter is asked for, and nowhere else.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ppo.models.restore import Source, find_file, read_tensors

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def import_peft() -> Any:
    """The module `peft`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ImportError("Adapters need the package PEFT, which is not installed: pip install 'peft>=0.18'.") from None


def is_peft_model(model: Any) -> bool:
    """Whether a model is PEFT's; where nobody has imported PEFT, none is."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def kbit_keywords(given: Mapping[str, Any]) -> set[str]:
    """The keywords among `given` that are arguments of PEFT's `prepare_model_for_kbit_training`; none without PEFT."""
    if not given or find_spec("peft") is None:
        return set()
    taken = set(inspect.signature(import_peft().prepare_model_for_kbit_training).parameters)
    return (taken - {"model"}) & set(given)


def refuse_prompt_learning(configs: Mapping[str, Any]) -> None:
    """Raise ValueError for an adapter that puts virtual tokens in front: values and logits would not fit the tokens."""
    for name, config in configs.items():
        if config.is_prompt_learning:
            raise ValueError(
                f"The adapter {name!r} is of the type {config.peft_type.value}, which puts virtual tokens in front of "
                "the prompt; a value head needs one position for each real token. Use an adapter inside the layers, "
                "such as LoraConfig."
            )


def read_score(source: Source, namings: tuple[str, ...], hub: Mapping[str, Any]) -> nn.Linear:
    """The frozen score head, d -> labels, that was saved with a reward adapter.

    Raises:
        ValueError: the adapter has no weights file, or no score head in it.
    """
    found = [path for name in WEIGHTS if (path := find_file(source, name, hub)) is not None]
    if not found:
        raise ValueError(
            f"{os.fspath(source)!r} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}. Give the folder or the Hub name of an "
            "adapter that PEFT saved."
        )
    tensors = {
        name.rsplit(".", 1)[-1]: tensor
        for name, tensor in read_tensors(found[0], *namings).items()
        # PEFT keeps the head as it was before training as well, and may put a LoRA on it.
        if not {"original_module", "lora_A", "lora_B"} & set(name.split("."))
    }
    if "weight" not in tensors:
        raise ValueError(
            f"{found[0]} holds no weight named {' or '.join(namings)}, so it is no reward adapter. Train it for "
            'sequence classification (task_type="SEQ_CLS"), which saves the score head along.'
        )
    weight, bias = tensors["weight"], tensors.get("bias")
    with torch.device("meta"):
        score = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    score.load_state_dict(tensors, assign=True)
    return score.requires_grad_(False)


@contextmanager
def adapter_active(model: Any, name: str, afterwards: str | None = None) -> Iterator[None]:
    """The adapter `name` inside the block; then `afterwards`, or the one before; what is trainable stays as it was."""
    before, trainable = model.active_adapter, trainability(model)
    try:
        model.set_adapter(name)
        yield
    finally:
        model.set_adapter(afterwards or before)
        restore_trainability_(model, trainable)


def trainability(model: nn.Module) -> dict[str, bool]:
    """Which parameters are trained."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def restore_trainability_(model: nn.Module, trainable: Mapping[str, bool]) -> None:
    """Undo what PEFT sets when it switches or adds adapters; parameters that are new meanwhile are frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable and trainable[name])


def last_token_reward(scores: Tensor, attention_mask: Tensor) -> Tensor:
    """The reward of each sequence: the score of its last real token, with padding on either side.

    Args:
        scores: (B, T, labels), as `compute_reward_score` gives them.
        attention_mask: (B, T), not 0 on real tokens.

    Returns:
        (B,) for one label, else (B, labels).

    Raises:
        ValueError: shapes that do not fit, or a row without a real token.
    """
    if scores.ndim != 3 or scores.shape[:2] != attention_mask.shape:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} and an attention_mask of shape {tuple(attention_mask.shape)} do "
            "not fit: they have to be (B, T, labels) and (B, T). Give the mask that the scores were computed with."
        )
    real = attention_mask != 0
    if not real.any(dim=1).all():
        rows = (~real.any(dim=1)).nonzero()[:, 0].tolist()
        raise ValueError(f"Rows {rows} of attention_mask have no real token, so no reward. Leave these rows out.")
    last = real.shape[1] - 1 - real.flip(1).int().argmax(dim=1)
    rewards = scores[torch.arange(len(scores), device=scores.device), last]
    return rewards[:, 0] if rewards.shape[1] == 1 else rewards
