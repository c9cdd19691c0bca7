"""A tokenizer, tiny policies with value heads, and trainers of them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, PreTrainedTokenizerFast, T5Config
from x_transformers import Decoder, TransformerWrapper

from ppo import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    XTransformersWithValueHead,
)

VOCABULARY, PAD, END = 24, 0, 1
SMALL = {"batch_size": 4, "mini_batch_size": 2, "ppo_epochs": 2, "learning_rate": 1e-2}


def tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """Words w2 ... w23, <pad> 0, </s> 1."""
    words = {"<pad>": PAD, "</s>": END} | {f"w{i}": i for i in range(2, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", padding_side=side, model_max_length=64
    )


def gpt2(seed: int = 0, dropout: float = 0.0, vocabulary: int = VOCABULARY, **config: Any) -> Any:
    """Random but decided: the weights are large enough that no two tokens are nearly as likely."""
    torch.manual_seed(seed)
    described = GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=END, eos_token_id=END,
        pad_token_id=PAD, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **config,
    )  # fmt: skip
    return sharpened(AutoModelForCausalLM.from_config(described))


def t5(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    described = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=PAD,
        eos_token_id=END, decoder_start_token_id=PAD, dropout_rate=0.0,
    )  # fmt: skip
    return sharpened(AutoModelForSeq2SeqLM.from_config(described))


def sharpened(model: Any, size: float = 0.3) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model.eval()


def causal(seed: int = 0, dropout: float = 0.0, head_dropout: float = 0.0, **config: Any) -> Any:
    base = gpt2(seed, dropout, **config)
    return AutoModelForCausalLMWithValueHead(base, v_head_init_strategy="normal", summary_dropout_prob=head_dropout)


def seq2seq(seed: int = 0) -> Any:
    return AutoModelForSeq2SeqLMWithValueHead(t5(seed), v_head_init_strategy="normal", summary_dropout_prob=0.0)


def x_causal(seed: int = 0, **wrapper: Any) -> Any:
    torch.manual_seed(seed)
    network = TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=64, attn_layers=Decoder(dim=16, depth=2, heads=2), **wrapper
    )
    return XTransformersWithValueHead(sharpened(network), v_head_init_strategy="normal")


def config(**changes: Any) -> PPOConfig:
    return PPOConfig(**(SMALL | changes))


def trainer(
    model: Any = None, ref_model: Any = None, optimizer: Any = None, side: str = "right", **changes: Any
) -> PPOTrainer:
    """A trainer of `model`, by default with the reference of another seed: their KL is not 0."""
    model = causal(0) if model is None else model
    if ref_model is None and not model.is_encoder_decoder and not model.is_peft_model:
        ref_model = causal(1)
    return PPOTrainer(config(**changes), model, ref_model, tokenizer(side), optimizer=optimizer)


def batch(size: int = 4, seed: int = 0, equal: bool = False, start: int | None = None) -> tuple[list[Any], ...]:
    """Queries, responses and scores of different lengths, without pads and ends."""
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int, most: int) -> torch.Tensor:
        length = most if equal else int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator)

    queries, responses = [draw(2, 5) for _ in range(size)], [draw(2, 6) for _ in range(size)]
    if start is not None:
        responses = [torch.cat([torch.tensor([start]), r]) for r in responses]
    return queries, responses, list(torch.randn(size, generator=generator))
