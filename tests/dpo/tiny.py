"""Tiny models of both kinds, random but decided: sharp enough that no two tokens are nearly as likely."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from x_transformers import Decoder, TransformerWrapper

from dpo import DPO
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.models import Model
from dpo.lm.sequences import TokenSequence
from dpo.lm.x_transformers import XTransformersModel

VOCABULARY = 23
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}


def x_config(positions: str = "rotary", decoder: dict[str, Any] | None = None, **wrapper: Any) -> dict[str, Any]:
    """What an x-transformers `config.json` holds."""
    return {
        "model_type": "x-transformers",
        "num_tokens": VOCABULARY,
        "max_seq_len": 64,
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "positions": positions,
        "decoder": decoder or {},
        "wrapper": wrapper,
    }


CONFIGS = {
    "llama": LLAMA,
    "gpt2": GPT2,  # tied embeddings, learned positions
    "x-rotary": x_config("rotary"),
    "x-absolute-tied": x_config("absolute", tie_embedding=True),
}


def tiny_model(name: str, seed: int = 0) -> Model:
    """One of CONFIGS with random weights."""
    config = CONFIGS[name]
    kind = XTransformersModel if name.startswith("x-") else HuggingFaceModel
    return sharpen(kind.random(config, seed), seed)


def sharpen(model: nn.Module, seed: int, size: float = 0.3) -> Any:
    """Add noise to every weight, in place: as initialised, tiny models are nearly uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def sequence(prompt: list[int], completion: list[int]) -> TokenSequence:
    """A completion whose every token is scored."""
    return TokenSequence(prompt, completion, [True] * len(completion))


def bigram_model(size=13):
    """The simplest language model: row i of the table holds the logits of what follows token i."""
    return sharpen(nn.Embedding(size, size), seed=0)


def transformer_wrapper(name):
    """The library's own module, as a user of the class DPO builds it: nothing of ours has touched it."""
    config = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TransformerWrapper(
            num_tokens=VOCABULARY,
            max_seq_len=config["max_seq_len"],
            use_abs_pos_emb=config["positions"] == "absolute",
            # Without flash attention its softmax is in float32 always, too coarse for finite differences.
            attn_layers=Decoder(
                dim=16, depth=2, heads=2, attn_flash=True, rotary_pos_emb=config["positions"] == "rotary"
            ),
            **config["wrapper"],
        )
    return sharpen(network, seed=0)


def moved_policy(name, cls=DPO, **options):
    """A DPO over a real TransformerWrapper whose policy has left the reference."""
    dpo = cls(transformer_wrapper(name), **options)
    sharpen(dpo.policy_model, seed=7, size=0.2)
    return dpo


def pair_tensors(seed=0, rows=4, length=9):
    """Random pairs that share their prompt, with prompts of 2 to 4 tokens and 0 to 2 pads."""
    generator = torch.Generator().manual_seed(seed)
    preferred, unpreferred = torch.randint(1, 23, (2, rows, length), generator=generator)
    prompt_mask = torch.arange(length) < torch.randint(2, 5, (rows, 1), generator=generator)
    unpreferred[prompt_mask] = preferred[prompt_mask]
    for seq in (preferred, unpreferred):
        seq[torch.arange(length) >= length - torch.randint(0, 3, (rows, 1), generator=generator)] = 0
    return preferred, unpreferred, prompt_mask
