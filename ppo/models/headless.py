"""Policies without a value head, for estimators that need no values. Their forward answers 0 where a value stands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from x_transformers import TransformerWrapper

from dpo.lm.x_transformers import XTransformersModel
from ppo.config import PPOConfig
from ppo.estimators import check_settings
from ppo.models import adapters
from ppo.models.causal import AutoModelForCausalLMWithValueHead
from ppo.models.seq2seq import AutoModelForSeq2SeqLMWithValueHead
from ppo.models.x_transformers import XTransformersWithValueHead, read_description


class NoValueHead(nn.Module):
    """The value 0 for every position. It has no weights, so that nothing is trained or saved."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, 1]."""
        return hidden.new_zeros(*hidden.shape[:-1], 1, dtype=torch.float32)

    def init_weights_(self, strategy: str | None, spread: float) -> None:
        """Nothing is there to initialise."""

    def fill_(self, saved: Mapping[str, Tensor]) -> None:
        """A saved head is not read."""


class CausalLMPolicy(AutoModelForCausalLMWithValueHead):
    """A causal Hugging Face model as a policy without a value head; what it saves is the plain model, or adapter."""

    def __init__(self, pretrained_model: Any):
        super().__init__(pretrained_model)
        self.v_head = NoValueHead()  # type: ignore[assignment]

    def _restore_head(self, source: Any, hub_keywords: dict[str, Any]) -> None:
        """A head that was saved with the model is left where it is."""


class Seq2SeqLMPolicy(AutoModelForSeq2SeqLMWithValueHead):
    """An encoder-decoder of Hugging Face as a policy without a value head; what it saves is the plain model."""

    def __init__(self, pretrained_model: Any):
        super().__init__(pretrained_model)
        self.v_head = NoValueHead()  # type: ignore[assignment]

    def _restore_head(self, source: Any, hub_keywords: dict[str, Any]) -> None:
        """A head that was saved with the model is left where it is."""


class XTransformersPolicy(XTransformersWithValueHead):
    """A causal TransformerWrapper as a policy without a value head; to be saved it needs its `description`."""

    def __init__(self, network: TransformerWrapper, description: Mapping[str, Any] | None = None):
        super().__init__(network, description=description)
        self.v_head = NoValueHead()  # type: ignore[assignment]

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> XTransformersPolicy:
        """Load a model folder of `dpo.lm.models`; a head that was saved beside it is left where it is.

        Raises:
            ValueError: the folder holds no x-transformers model, or weights that do not fit.
        """
        description = read_description(folder, "CausalLMPolicy")
        return cls(XTransformersModel.load(Path(folder), description, dtype).network, description, **kwargs)


def as_policies(config: Any, model: Any, ref_model: Any) -> tuple[Any, Any]:
    """Put plain models into the classes above, where the estimator of a PPOConfig needs no values; others stay.

    Raises:
        ValueError: settings that the estimator cannot honour.
    """
    if not isinstance(config, PPOConfig):
        return model, ref_model  # refused by its type later
    check_settings(config)
    if config.advantage_estimator == "gae":
        return model, ref_model
    policy = as_policy(model)
    return policy, policy if ref_model is model else as_policy(ref_model)


def as_policy(model: Any) -> Any:
    """One plain model of transformers, PEFT or x-transformers as a policy; whatever else is given comes back."""
    if isinstance(model, TransformerWrapper):
        return XTransformersPolicy(model)
    if isinstance(model, PreTrainedModel) or adapters.is_peft_model(model):
        return Seq2SeqLMPolicy(model) if model.config.is_encoder_decoder else CausalLMPolicy(model)
    return model
