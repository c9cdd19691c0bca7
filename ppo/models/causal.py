"""Causal language models with a value head."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModelForCausalLM

from ppo.models.wrapper import PreTrainedModelWrapper


class AutoModelForCausalLMWithValueHead(PreTrainedModelWrapper):
    """A decoder whose every position has next-token logits and a value; see PreTrainedModelWrapper."""

    transformers_parent_class = AutoModelForCausalLM
    lm_head_namings = ("lm_head", "embed_out", "output_layer")
    is_encoder_decoder = False

    def _last_hidden_state(self, output: Any) -> Tensor:
        return output.hidden_states[-1]
