"""The `config.json` of a model folder: the kind of the model and its sizes. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo.errors import InputError


class ModelError(InputError):
    """A model folder that cannot be used. The message gives the reason and the fix."""


def read_config(folder: Path | str) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        ModelError: the file is missing or is not a JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
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


def is_x_transformers(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "x-transformers"


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """Return the number of token ids that the model has embeddings for; None if its config does not tell."""
    if is_x_transformers(config):
        return config["num_tokens"]
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def position_limit(config: dict[str, Any]) -> int | None:
    """Return the longest sequence that the model has positions for, in tokens; None without a limit.

    Models with rotary positions can compute longer sequences, but badly; models with learned positions cannot.
    """
    if is_x_transformers(config):
        return config["max_seq_len"] if config["positions"] == "absolute" else None
    return config.get("max_position_embeddings") or config.get("n_positions")


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
