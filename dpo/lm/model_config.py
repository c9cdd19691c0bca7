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
