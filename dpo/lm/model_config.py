"""The `config.json` of a model folder: the kind of the model and its sizes. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from dpo.errors import InputError

# Entries of a config with the number of positions, as families name them.
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len", "seq_length")
LEARNED = POSITIONS[:3]  # the others name the length that models with ALiBi were trained for
# Entries of a config whose models compute positions, and so go on behind the length that they were trained for.
COMPUTED_POSITIONS = ("rope_parameters", "rope_theta", "rope_scaling", "alibi", "relative_attention_num_buckets")


class ModelError(InputError):
    """A model folder that cannot be used. The message gives the reason and the fix."""


def read_config(folder: Path | str) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        ModelError: the file is missing or is not a JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_hook=_number)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8 text. Copy it again.") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no JSON object, as the config.json of a model is. Copy it again.")
    return config


def _number(found: dict[str, Any]) -> Any:
    """Undo how transformers 5 writes numbers that JSON does not have: {"__float__": "Infinity"}."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


def is_x_transformers(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "x-transformers"


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """Return the number of token ids that the model has embeddings for; None if its config does not tell."""
    if is_x_transformers(config):
        return config["num_tokens"]
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def position_limit(config: dict[str, Any], learned: bool = False) -> int | None:
    """Return the longest sequence that the model has positions for, in tokens; None without a limit.

    Models with rotary positions can compute longer sequences, but badly; models with learned positions cannot.

    Args:
        learned: ask for the limit of learned positions alone, which nothing can be computed beyond.
    """
    if learned and any(config.get(name) for name in COMPUTED_POSITIONS):
        return None
    if is_x_transformers(config):
        return config["max_seq_len"] if config["positions"] == "absolute" else None
    for part in (config, config.get("text_config") or {}):
        for name in LEARNED if learned else POSITIONS:
            if part.get(name):
                return part[name]
    return None


def with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Add the keys under which transformers 4 reads rotary positions to a config that has those of version 5.

    Version 4 takes its own default where it finds none of them, without a word. Where layers differ in their rotary
    positions, the older keys could not say so, and none are added.
    """
    rope = config.get("rope_parameters")
    found = dict(config)
    if isinstance(config.get("text_config"), dict):
        found["text_config"] = with_older_keys(config["text_config"])
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_theta"), (int, float)):
        return found
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    older = {"rope_theta": rope["rope_theta"]}
    if config.get("model_type") == "gpt_neox":  # which had names of its own
        older = {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    if "partial_rotary_factor" in rope and "rotary_pct" not in older:
        older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return older | found


class Shape(NamedTuple):
    """Sizes of a model whose layers are like those of Llama or GPT-2."""

    parameters: float
    body: float  # parameters in the layers
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    heads: int
    query: int  # channels of all heads' queries
    key_value: int  # channels of all heads' keys
    gated: bool = True  # SwiGLU and RMSNorm as in Llama; otherwise GELU and LayerNorm as in GPT-2

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """Read a config.json: Llama-like, GPT-2-like or x-transformers.

        Raises:
            KeyError: the config has no field of that name.
        """
        if is_x_transformers(config):
            d, layers, heads, vocabulary = (config[name] for name in ("dim", "depth", "heads", "num_tokens"))
            gated = config["decoder"].get("ff_glu", False)
            query = key_value = heads * config["decoder"].get("attn_dim_head", 64)
            inner, tied = 4 * d, config["wrapper"].get("tie_embedding", False)
        else:
            d, layers = _either(config, "hidden_size", "n_embd"), _either(config, "num_hidden_layers", "n_layer")
            heads, vocabulary = _either(config, "num_attention_heads", "n_head"), config["vocab_size"]
            gated = "intermediate_size" in config
            inner = config["intermediate_size"] if gated else config.get("n_inner") or 4 * d
            head = config.get("head_dim") or d // heads
            query, key_value = heads * head, config.get("num_key_value_heads", heads) * head
            tied = config.get("tie_word_embeddings", not gated)
        body = layers * (2 * d * query + 2 * d * key_value + (3 if gated else 2) * d * inner)
        parameters = body + vocabulary * d * (1 if tied else 2)
        return cls(parameters, body, d, layers, inner, vocabulary, heads, query, key_value, gated)


def _either(config: dict[str, Any], name: str, other: str) -> int:
    return config[name] if name in config else config[other]
