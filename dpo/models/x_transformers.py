"""x-transformers: a TransformerWrapper around a Decoder, described by a few fields in `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

from dpo.models.hf import cut_at
from dpo.models.weights import fill
from dpo.tied import own_tied_head_


class XTransformersModel(nn.Module):
    def __init__(self, config: dict[str, Any]):
        """Build from `num_tokens`, `max_seq_len`, `dim`, `depth`, `heads`, `positions` ("rotary" or "absolute").

        `decoder` and `wrapper` in the config hold further keywords of those two classes, as they are named there.
        Every dropout among them is left out: policy and reference must be the same function at the start.
        """
        super().__init__()
        self.config = config
        # Dropped by name: flash attention and layer dropout keep plain numbers, not nn.Dropout modules to be set to 0.
        decoder, wrapper = (
            {name: value for name, value in config[part].items() if "dropout" not in name}
            for part in ("decoder", "wrapper")
        )
        decoder = {"attn_flash": True, "rotary_pos_emb": config["positions"] == "rotary", **decoder}
        self.network = TransformerWrapper(
            num_tokens=config["num_tokens"],
            max_seq_len=config["max_seq_len"],
            use_abs_pos_emb=config["positions"] == "absolute",
            attn_layers=Decoder(dim=config["dim"], depth=config["depth"], heads=config["heads"], **decoder),
            **wrapper,
        )
        own_tied_head_(self.network)

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any], dtype: torch.dtype) -> XTransformersModel:
        model = cls(config)
        fill(model.network, folder)
        return model.to(dtype)

    @classmethod
    def random(cls, config: dict[str, Any], seed: int) -> XTransformersModel:
        """A randomly initialised model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[N, T] ids, padded on the right -> logits [N, T, V]. No mask: a causal model never looks right."""
        return self.network(input_ids)

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_new_tokens: int, eos_id: int, pad_id: int) -> list[list[int]]:
        """Greedy continuations of the prompts, each up to and without its end token."""
        device = next(self.network.parameters()).device
        # The sampler puts the network back into the mode that it itself is in: a new module is in training mode.
        sampler = AutoregressiveWrapper(self.network, pad_value=pad_id).train(self.network.training)
        # Its own eos_token would also stop at an end token inside a prompt, so the cut is made here.
        out: Any = sampler.generate([torch.tensor(p, device=device) for p in prompts], max_new_tokens, temperature=0.0)
        return [cut_at(row, eos_id) for row in out.tolist()]

    def write_config(self, folder: Path) -> None:
        """Write `config.json`."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
