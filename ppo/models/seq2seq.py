"""Encoder-decoder language models with a value head."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from ppo.models.wrapper import PreTrainedModelWrapper


class AutoModelForSeq2SeqLMWithValueHead(PreTrainedModelWrapper):
    """An encoder-decoder: logits and values are the decoder's, so as long as `decoder_input_ids`.

    See PreTrainedModelWrapper.
    """

    transformers_parent_class = AutoModelForSeq2SeqLM
    lm_head_namings = ("lm_head", "embed_out", "output_projection")
    is_encoder_decoder = True

    def _last_hidden_state(self, output: Any) -> Tensor:
        return output.decoder_hidden_states[-1]
