"""Tiny random models under the hub names that TRL 0.11.4's tests ask for, as folders below the current one.

examples/results/2026-11-26-old-trl.md tells what they are for: with HF_HUB_OFFLINE=1 a relative folder is found first.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 1024
SAID = ["This", " morning", " I", " went", " to", " the", " ", "this", " is", " a", " test", " another,", " longer"]
OWN = "trl-internal-testing/"
RANDOM = OWN + "tiny-random-"
ENDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1}
GPT: dict[str, Any] = ENDS | {"n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 128}
WIDE: dict[str, Any] = ENDS | {"hidden_size": 32, "max_position_embeddings": 128}
LAYERS: dict[str, Any] = WIDE | {"num_hidden_layers": 5, "num_attention_heads": 4}
ROTARY: dict[str, Any] = GPT | {"rotary_dim": 4}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "max_position_embeddings": 128,
    "decoder_start_token_id": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FSMT = {k: v for k, v in BART.items() if k != "vocab_size"} | {
    "langs": ["en", "ru"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY
}  # fmt: skip
LED = {k: v for k, v in BART.items() if k != "max_position_embeddings"} | {
    "attention_window": 4, "max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 128
}  # fmt: skip
PROPHET: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "encoder_ffn_dim": 37, "num_encoder_layers": 2,
    "num_encoder_attention_heads": 4, "decoder_ffn_dim": 37, "num_decoder_layers": 2, "num_decoder_attention_heads": 4,
    "max_position_embeddings": 128, "decoder_start_token_id": 0, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "ngram": 2,
}  # fmt: skip
EXPERTS = T5 | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2, "expert_capacity": 99}
NEO = WIDE | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
NEOX, SHARDS = LAYERS | {"intermediate_size": 37}, {"max_shard_size": "40KB"}
BLOOM = ENDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}
OPT = LAYERS | {"word_embed_proj_dim": 32, "ffn_dim": 37, "pad_token_id": 0}
# Name; class of transformers; its configuration; options of save_pretrained.
MODELS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (OWN + "dummy-GPT2-correct-vocab", "GPT2LMHeadModel", GPT | {"pad_token_id": 1}, {}),
    ("gpt2", "GPT2LMHeadModel", GPT, {}),
    (OWN + "tiny-BloomForCausalLM-correct-vocab", "BloomForCausalLM", BLOOM | {"pad_token_id": 0}, {}),
    (OWN + "tiny-T5ForConditionalGeneration-correct-vocab", "T5ForConditionalGeneration", T5, {}),
    (RANDOM + "CodeGenForCausalLM-sharded", "CodeGenForCausalLM", ROTARY, SHARDS),
    (RANDOM + "GPTNeoXForCausalLM-safetensors", "GPTNeoXForCausalLM", NEOX, {}),
    (RANDOM + "GPTNeoXForCausalLM-safetensors-sharded", "GPTNeoXForCausalLM", NEOX, SHARDS),
    (RANDOM + "GPT2Model", "GPT2LMHeadModel", GPT, {}),
]
PLAIN = {
    "CodeGenForCausalLM": ROTARY, "GPTJForCausalLM": ROTARY, "GPTNeoForCausalLM": NEO, "GPTNeoXForCausalLM": NEOX,
    "OPTForCausalLM": OPT, "BloomForCausalLM": BLOOM, "GPT2LMHeadModel": GPT, "LlamaForCausalLM": NEOX,
    "BartForConditionalGeneration": BART, "BlenderbotForConditionalGeneration": BART,
    "BigBirdPegasusForConditionalGeneration": BART | {"attention_type": "original_full"},
    "BlenderbotSmallForConditionalGeneration": BART, "FSMTForConditionalGeneration": FSMT,
    "LEDForConditionalGeneration": LED, "LongT5ForConditionalGeneration": T5, "M2M100ForConditionalGeneration": BART,
    "MarianMTModel": BART, "MBartForConditionalGeneration": BART, "MT5ForConditionalGeneration": T5,
    "MvpForConditionalGeneration": BART, "PegasusForConditionalGeneration": BART,
    "PegasusXForConditionalGeneration": BART | {"block_size": 8}, "PLBartForConditionalGeneration": BART,
    "ProphetNetForConditionalGeneration": PROPHET, "SwitchTransformersForConditionalGeneration": EXPERTS,
    "T5ForConditionalGeneration": T5, "T5Model": T5,
}  # fmt: skip


def tokenizer(end: str, pad: str | None) -> Any:
    """Words, each with the space before it: the first prompt of the tests has seven tokens."""
    words = dict.fromkeys([pad or "<p>", end, "<unk>", "<bos>", *SAID, *(f" w{i}" for i in range(VOCABULARY))])
    numbered = {word: i for i, word in enumerate(words) if i < VOCABULARY}
    inner = Tokenizer(models.WordLevel(numbered, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    inner.decoder = decoders.Fuse()
    padding = {} if pad is None else {"pad_token": pad}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, unk_token="<unk>", **padding)


def main() -> None:
    torch.manual_seed(0)
    for name, kind, config, options in [*MODELS, *((RANDOM + kind, kind, c, {}) for kind, c in PLAIN.items())]:
        made = getattr(transformers, kind)
        made(made.config_class(**config)).save_pretrained(name, **options)
    for name in ("gpt2", OWN + "dummy-GPT2-correct-vocab"):
        tokenizer("<|endoftext|>", None).save_pretrained(name)
    for kind in ("BloomForCausalLM", "T5ForConditionalGeneration"):
        tokenizer("</s>", "<pad>").save_pretrained(f"{OWN}tiny-{kind}-correct-vocab")


if __name__ == "__main__":
    main()
