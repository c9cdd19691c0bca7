"""Tiny Hugging Face models of several families, random but decided, and adapters for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from x_transformers import Decoder, TransformerWrapper

from tests.dpo.tiny import sharpen, x_config

VOCABULARY = 40
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    **ENDS,
)
MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (  # tied embeddings, learned positions, dropout
        GPT2LMHeadModel,
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=64, **ENDS),
    ),
    "llama": (LlamaForCausalLM, LLAMA),
    "neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            **ENDS,
        ),
    ),
    "opt": (  # projects behind its last layer, as OPT-350m
        OPTForCausalLM,
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=8,
            do_layer_norm_before=False,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            **ENDS,
        ),
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            eos_token_id=2,
            pad_token_id=0,
        ),
    ),
    "bart": (
        BartForConditionalGeneration,
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
            **ENDS,
        ),
    ),
    "bert": (  # has no language-model head
        BertModel,
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        ),
    ),
}


def tiny(name: str, seed: int = 0) -> Any:
    """One of MODELS with random weights, without dropout; all calls with the same arguments give the same."""
    kind, config = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sharpen(kind(type(config)(**config.to_dict())), seed).eval()


def saved(name: str, folder: Any, seed: int = 0) -> str:
    """The folder, as a string, with one of MODELS in it."""
    tiny(name, seed).save_pretrained(folder)
    return str(folder)


def ids(rows: int = 2, length: int = 6, seed: int = 0) -> torch.Tensor:
    """[rows, length] of tokens that are no special ones."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded_left(tokens: torch.Tensor, pads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows behind so many pads, and their mask."""
    rows, length = tokens.shape
    padded = torch.cat([torch.zeros(rows, pads, dtype=torch.long), tokens], dim=1)
    return padded, (torch.arange(pads + length) >= pads).long().expand(rows, -1)


def lora(**options: Any) -> Any:
    """A small LoRA on the attention of Llama."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


def saved_reward_adapter(folder: Any, labels: int = 1, safe: bool = True, seed: int = 5) -> Any:
    """A reward adapter on the tiny Llama, saved by PEFT; gives the whole classifier back."""
    from peft import get_peft_model

    names = {str(label): f"LABEL_{label}" for label in range(labels)}
    config = LlamaConfig(**LLAMA.to_dict() | {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}})
    base = LlamaForSequenceClassification(config)
    base.model.load_state_dict(tiny("llama").model.state_dict())
    classifier = get_peft_model(base, lora(task_type="SEQ_CLS"))
    trained = [p for p in classifier.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    classifier.save_pretrained(str(folder), safe_serialization=safe)
    return classifier.eval()


def x_network(name: str = "absolute", seed: int = 0, **wrapper: Any) -> TransformerWrapper:
    """A TransformerWrapper as a user builds it: "absolute", "rotary", or "tied" (absolute)."""
    config = x_config("rotary" if name == "rotary" else "absolute", **wrapper)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TransformerWrapper(
            num_tokens=VOCABULARY,
            max_seq_len=config["max_seq_len"],
            use_abs_pos_emb=config["positions"] == "absolute",
            attn_layers=Decoder(dim=16, depth=3, heads=2, rotary_pos_emb=name == "rotary"),
            tie_embedding=name == "tied",
            **wrapper,
        )
    return sharpen(network, seed).eval()


def names_of_gradients(module: nn.Module) -> set[str]:
    """The parameters that have a gradient."""
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None}
