"""Tiny models and adapters with definite weights, and peft's own log-probs of them, one sequence at a time."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.sequences import TokenSequence

VOCABULARY = 199
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": []}
CONFIGS = {
    "llama": {"model_type": "llama", **SIZES, "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", **SIZES, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
        "bos_token_id": None, "eos_token_id": None,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "tie_word_embeddings": False},
}  # fmt: skip


def network(kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model whose weights are scaled up, so that each part of it counts."""
    fields = {**CONFIGS[kind], **changes}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return net.to(dtype).eval()


def lora(net: Any, seed: int = 1, trained: bool = True, scale: float = 0.2, **options: Any) -> Any:
    """peft's model around a copy of a network; `trained`: its weights are not those that leave the base as it is."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        keys = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
        model = get_peft_model(copy.deepcopy(net), LoraConfig(**keys), autocast_adapter_dtype=False)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()) if trained else ():
            if parameter.requires_grad and "lora_magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype) * scale)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    """A folder of a model or of an adapter, as its library writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def sequences(seed: int = 0, pairs: int = 3) -> list[TokenSequence]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(pairs):
        prompt = torch.randint(3, VOCABULARY, (9 + i,), generator=draw).tolist()
        for side in range(2):
            ids = torch.randint(3, VOCABULARY, (5 + 2 * side + i,), generator=draw).tolist()
            found.append(TokenSequence(prompt, ids, [True] * len(ids)))
    return found


@torch.no_grad()
def expected(model: Any) -> Tensor:
    """The log-probs of `sequences`, each by itself, with the log-softmax in float64."""
    found = []
    for sequence in sequences():
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
        logps = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        at = len(sequence.prompt_ids) - 1
        found.append(logps[0, at:-1].gather(-1, ids[0, at + 1 :, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def computed(model: Any, way: Way = Way()) -> Tensor:  # noqa: B008 (immutable)
    """The same by a model of ours."""
    ours = LogprobModel(model, way)
    return ours(ours.collate(sequences(), 0)).logps.double()


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, in nats."""
    return float((one - other).abs().max())
