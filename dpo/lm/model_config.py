"""The `config.json` of a model folder: what kind of model it is, and how large. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo.errors import InputError


class ModelError(InputError):
    """A model folder that cannot be used; the message says why and what to do."""


def read_config(folder: Path | str) -> dict[str, Any]:
    """The `config.json` of a model folder."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None


def is_x_transformers(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "x-transformers"


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """How many token ids the model knows; None where its config does not say."""
    if is_x_transformers(config):
        return config["num_tokens"]
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def position_limit(config: dict[str, Any]) -> int | None:
    """The longest sequence the model has positions for; None where nothing limits it.

    Rotary models compute beyond their `max_position_embeddings`, badly; learned positions cannot.
    """
    if is_x_transformers(config):
        return config["max_seq_len"] if config["positions"] == "absolute" else None
    return config.get("max_position_embeddings") or config.get("n_positions")
