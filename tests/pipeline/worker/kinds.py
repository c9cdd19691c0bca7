"""Tiny models of twelve kinds that differ in what their layers do, and pairs scored as a run scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.lm.hf import HuggingFaceModel
from dpo.lm.sequences import TokenSequence
from dpo.lm.weights import canonical_tensors, write_weights
from pipeline.models.device import Device
from pipeline.models.scorer import Scorer, score_all
from tests.dpo.tiny import sharpen
from tests.pipeline.worker.small_run import LLAMA, VOCABULARY, make_rows

SIZES = {name: value for name, value in LLAMA.items() if name not in ("model_type", "initializer_range")}
SIZES |= {"tie_word_embeddings": False, "pad_token_id": 0, "max_position_embeddings": 256, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SWITCH = 32  # positions above which the longrope below has other frequencies
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4}
LONGROPE |= {"long_factor": [1.0, 4.0, 16.0, 64.0], "original_max_position_embeddings": SWITCH}
STATES = {"n_groups": 1, "state_size": 8, "num_heads": 8, "head_dim": 8, "expand": 2, "chunk_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mixtral": SIZES | EXPERTS,
    "qwen3_moe": SIZES | EXPERTS,
    "deepseek_v3": SIZES
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16}
    | {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    "gpt_neox": SIZES,
    "gemma3_text": SIZES | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": SIZES | {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH, "sliding_window": None},
    "mamba2": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, **STATES},
    "gpt_oss": SIZES | EXPERTS | {"sliding_window": 8},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "olmoe": SIZES | EXPERTS,
    "falcon_h1": SIZES
    | {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
    | {"mamba_chunk_size": 16},
}


def kind_folder(folder: Path, kind: str, **more: Any) -> Path:
    """A model folder of a kind, whose matrices are large enough that attention and routing matter."""
    fields = {name: value for name, value in KINDS[kind].items() if kind not in ("gpt_neox",) or name != "head_dim"}
    model = sharpen(HuggingFaceModel.random({"model_type": kind, **fields, **more}, seed=1), 0, 0.15)
    folder.mkdir(parents=True)
    write_weights(folder, model.on_disk(canonical_tensors(model.network)))
    model.write_config(folder)
    return folder


def mixed_rows() -> list[dict[str, Any]]:
    """Pairs of which some are longer than SWITCH on both sides, some on one, and most on none."""
    rows = make_rows(24, seed=5)
    for number, row in enumerate(rows):
        for side in ("chosen", "rejected")[: {0: 2, 3: 1}.get(number % 6, 0)]:
            row[f"{side}_ids"] = [*row[f"{side}_ids"], *(7, 11, 13) * 12]
            row[f"{side}_mask"] = [*row[f"{side}_mask"], *[True] * 36]
    return rows


def scored(folder: Path, rows: list[dict[str, Any]], dtype: str) -> tuple[list[dict[str, Any]], Scorer]:
    """The rows with the log-probs of a folder's model, computed in batches as an actor of the pool does."""
    scorer = Scorer(str(folder), str(folder / "cache"), dtype, 0, 300, True, Device("cpu", 1, 1))
    sides = [(row, side) for row in rows for side in ("chosen", "rejected")]
    sequences = [TokenSequence(row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_mask"]) for row, side in sides]
    for (row, side), values in zip(sides, score_all(scorer.model, sequences, 0, 300), strict=True):
        row[f"{side}_logps"] = values
    return rows, scorer
