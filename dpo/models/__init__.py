"""Language models behind one small interface: token ids in, logits out.

A model on disk is a folder with `config.json` and safetensors: a Hugging Face model, or an x-transformers one
(`"model_type": "x-transformers"`). The modules of the two kinds share this interface:

    network            the library's own module; its parameter names are the names on disk
    forward(ids)       [N, T] int64 -> logits [N, T, V]
    hidden(batch)      a SequenceBatch -> hidden states [R, T, d]
    head()             the module from hidden states to logits
    plain_head         whether nothing changes the logits behind it
    row_each           whether its shared layout is a row for each group
    generate(...)      greedy continuations
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo.errors import InputError
from dpo.models import hf, x_transformers
from dpo.models.hf import HuggingFaceModel
from dpo.models.x_transformers import XTransformersModel

Model = HuggingFaceModel | XTransformersModel


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


def why_unshared(config: dict[str, Any]) -> str | None:
    """What in a `config.json` speaks against sharing a prompt between its completions; None: nothing.

    Only what the config tells. `logprobs.fastest_way` compares the numbers of the model itself.
    """
    return (x_transformers if is_x_transformers(config) else hf).why_unshared(config)


def load_model(folder: Path | str, dtype: torch.dtype) -> Model:
    """Load a model folder with its weights; dropout off.

    Under an active ZeRO-3 set-up (see `pipeline.worker.engine`) the parameters are partitioned as they are built.

    Raises:
        ModelError: no such folder, or weights that do not fit its config.
    """
    config = read_config(folder)
    if is_x_transformers(config):
        return XTransformersModel.load(Path(folder), config, dtype)
    return HuggingFaceModel.load(Path(folder), dtype)


def freeze(model: nn.Module) -> nn.Module:
    """No gradients, evaluation mode."""
    return model.requires_grad_(False).eval()
