"""A tiny model of every type that AutoModelForCausalLM maps, for tests over all of them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 128
MOST_PARAMETERS = 10_000_000
TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Types without a tiny model, and why. A type that is neither here nor can be built fails its test.
NOT_BUILT = {
    "blt": "its patcher has a size of its own",
    "dots3_note": "its config cannot be small",
    "dots3_note_text": "its config cannot be small",
    "emu3": "its text config is not mapped",
    "gemma3n": "needs the package timm",
    "gemma4_assistant": "drafts for another model",
    "gemma4_unified_assistant": "drafts for another model",
    "got_ocr2": "its image encoder has a size of its own",
    "inkling2_loop_text": "its vocabulary cannot be small",
    "inkling2_text": "its vocabulary cannot be small",
    "mllama": "its text config is not mapped",
    "moss_transcribe_diarize": "its audio encoder has a size of its own",
    "musicgen": "its config is that of three models",
    "musicgen_melody": "its config is that of three models",
    "phi4_multimodal": "its encoders have sizes of their own",
    "qwen4_exp": "its config cannot be small",
}

# Small values for the many names that configs have for the same things.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embedding_size"), 32),
    **dict.fromkeys(("lru_width", "d_embed", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("n_ctx", "n_positions", "max_position_embeddings", "max_seq_len", "max_target_positions"), 256),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "dim_ff"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "state_size", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_head_dim", "ssm_state_size", "n_groups", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "per_layer_input_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("laurel_rank", "index_topk"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "chunk_size", "mamba_chunk_size", "index_head_dim"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups", "num_mem_blocks"), 1),
    **dict.fromkeys(("rotary_dim", "mamba_d_conv", "linear_num_value_heads", "ngram_vocab_size_ratio"), 4),
    **dict.fromkeys(("altup_num_inputs", "emb_neighbor_num", "emb_split_num"), 2),
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "max_source_positions": 64, "attention_window_size": 256, "hidden_dropout": 0.0,
    "num_kv_shared_layers": 0, "index_n_heads": 32,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
# What single types need on top.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 256},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "kimi_linear": {"num_experts_per_token": 2, "num_experts": 8},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_state": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
    "gemma3": {"vision_config": VISION, "mm_tokens_per_image": 4},
    "git": {"vision_config": {name: value for name, value in VISION.items() if name != "model_type"}},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 16, "feed_forward_size": 48,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 16, "shape_vocab_size": 16, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "bailing_hybrid": {
        "num_expert_group": 1, "num_experts_per_token": 2, "head_dim": 8, "linear_head_dim": 8, "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
    },
    "longcat_flash": {"head_dim": 8, "expert_ffn_hidden_size": 24, "zero_expert_num": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 32, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 1, "hc_count": 2, "hc_lowrank": 8, "ple_embed_dim": 8, "ngram_vocab_size_base": 64,
        "split_ngram_parts": 4, "layer_types": ["linear_attention", "indexed_attention"],
    },
}  # fmt: skip

# Rotary positions that change beyond 32 positions, in a type that has them.
LONGROPE = {
    "original_max_position_embeddings": 32,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 4.0, 16.0, 64.0],
    },
}  # fmt: skip


def tiny_config(kind: str, **fields: Any) -> Any:
    """The config of a small model of a type."""
    base = AutoConfig.for_model(kind)
    names, own = base.to_dict().keys(), OWN.get(kind, {})
    wanted = {name: value for name, value in SMALL.items() if name in names}
    if {"kv_lora_rank", "qk_rope_head_dim"} & names:
        wanted.pop("head_dim", None)
        wanted["num_key_value_heads"] = 4
    wanted |= own
    text = getattr(base, "text_config", None)
    if text is not None:
        inner = {name: value for name, value in SMALL.items() if name in text.to_dict()}
        wanted["text_config"] = inner | {"model_type": text.model_type} | _cut_to_layers(text, inner)
    wanted |= {name: value for name, value in _cut_to_layers(base, wanted).items() if name not in own}
    return AutoConfig.for_model(kind, **wanted | fields)


def _cut_to_layers(base: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry a layer, cut to the tiny model's layers, which keep as many kinds of layer as there are."""
    layers = wanted.get("num_hidden_layers", wanted.get("n_layer", 2))
    found: dict[str, Any] = {}
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "hybrid_override_pattern"):
        value = getattr(base, name, None)
        computed = isinstance(getattr(type(base), type(base).attribute_map.get(name, name), None), property)
        if isinstance(value, list) and value and isinstance(value[0], str) and not computed:
            kinds = list(dict.fromkeys(value))
            found[name] = (kinds + [kinds[-1]] * layers)[: max(layers, len(kinds))]
    longest = max(map(len, found.values()), default=layers)
    found = {name: (value + [value[-1]] * longest)[:longest] for name, value in found.items()}
    return found | {"num_hidden_layers": longest} if longest > layers else found


def tiny_network(kind: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A random model whose matrices are scaled up, so that attention, caps and routing matter to its log-probs."""
    config = tiny_config(kind, **fields)
    with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert size < MOST_PARAMETERS, f"{kind}: {size:,} parameters are not tiny"
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    _shake(network)
    return network


@torch.no_grad()
def _shake(network: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.dim() >= 2 and "A_log" not in name:
            parameter.copy_(noise * min(1.0, 1.4 / parameter.shape[-1] ** 0.5))
        elif parameter.dim() == 1 and not any(part in name for part in ("A_log", "dt_bias", ".D", "time_", "_log")):
            parameter.add_(0.1 * noise)


def tiny_folder(folder: Path, kind: str, **fields: Any) -> Path:
    """A tiny model as the library saves it."""
    tiny_network(kind, **fields).save_pretrained(folder)
    return folder
