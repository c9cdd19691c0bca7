"""Hugging Face causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel


class HuggingFaceModel(nn.Module):
    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> HuggingFaceModel:
        """Load a folder through the library's own loader; every dropout is set to 0."""
        config = without_dropout(AutoConfig.from_pretrained(folder))
        network = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True)
        return cls(network)

    @classmethod
    def random(cls, config: dict[str, Any], seed: int) -> HuggingFaceModel:
        """A randomly initialised model, for trials; `config` holds `model_type` and that type's fields."""
        kind, fields = config["model_type"], {k: v for k, v in config.items() if k != "model_type"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AutoModelForCausalLM.from_config(without_dropout(AutoConfig.for_model(kind, **fields)))
        return cls(network)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[N, T] ids, padded on the right -> logits [N, T, V]. No mask: a causal model never looks right."""
        return self.network(input_ids=input_ids, use_cache=False).logits

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_new_tokens: int, eos_id: int, pad_id: int) -> list[list[int]]:
        """Greedy continuations of the prompts, each up to and without its end token."""
        length = max(map(len, prompts))
        device = next(self.network.parameters()).device
        ids = torch.tensor([[pad_id] * (length - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
        # What is left unset here comes from the model's own generation_config, whose penalties are not greedy.
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=eos_id,
            pad_token_id=pad_id,
        )
        generate: Any = self.network.generate
        out = generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [cut_at(row, eos_id) for row in out[:, length:].tolist()]

    def write_config(self, folder: Path) -> None:
        """Write `config.json` (and `generation_config.json` where the model can generate)."""
        self.network.config.save_pretrained(folder)
        if self.network.generation_config is not None:
            self.network.generation_config.save_pretrained(folder)


def without_dropout(config: Any) -> Any:
    """Set every dropout probability of a config to 0: policy and reference must be the same function at the start."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def cut_at(ids: list[int], eos_id: int) -> list[int]:
    """Everything before the first end token."""
    return ids[: ids.index(eos_id)] if eos_id in ids else ids
