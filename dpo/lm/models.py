"""Language models behind one small interface: token ids in, logits out.

A model on disk is a folder with `config.json` and safetensors: a Hugging Face model, or an x-transformers one
(`"model_type": "x-transformers"`). The modules of the two kinds share this interface:

    network            the library's own module; its parameter names are the names on disk
    forward(ids, lengths)  [N, T] int64, and each row's tokens -> logits [N, T, V]
    hidden(batch)      a SequenceBatch -> hidden states [R, T, d]
    head()             the module from hidden states to logits
    plain_head         whether nothing changes the logits behind it
    restore_attention() after `hidden`: the network may be called from elsewhere again
    row_each           whether its shared layout is a row for each group
    adapted            the adapter on it; None: it is trained whole
    generate(...)      greedy continuations
    continuations(...) the same from a model in training, also from one that ranks hold together
    on_disk(tensors)   whole tensors of the network -> those of its files
    refuse_unwritable() raises a ModelError if they cannot be written as ZeRO-3 divides them

Each library takes seconds to import, so a kind's file is imported once a model of that kind is asked for.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.model_config import is_x_transformers, read_config
from dpo.lm.weights import Gatherer

if TYPE_CHECKING:
    from dpo.lm.hf import HuggingFaceModel
    from dpo.lm.x_transformers import XTransformersModel

Model: TypeAlias = "HuggingFaceModel | XTransformersModel"


def model_class(config: dict[str, Any]) -> type[HuggingFaceModel] | type[XTransformersModel]:
    """The class for a model of this `config.json`."""
    if is_x_transformers(config):
        from dpo.lm.x_transformers import XTransformersModel

        return XTransformersModel
    from dpo.lm.hf import HuggingFaceModel

    return HuggingFaceModel


def why_unshared(config: dict[str, Any]) -> str | None:
    """The entry of a `config.json` that forbids sharing a prompt between its completions; None if there is none.

    Only what the config tells. `trial.try_ways` compares the numbers of the model itself.
    """
    return model_class(config).why_unshared(config)


def load_model(folder: Path | str, dtype: torch.dtype, gathered: Gatherer = nullcontext, worn: Worn = ALONE) -> Model:
    """Load a model folder with its weights; dropout off.

    Args:
        gathered: a context in which a partitioned parameter is whole; for models that are built under ZeRO-3.
        worn: an adapter to put on a Hugging Face model, whose own weights are frozen then, and how these are quantized.

    Raises:
        ModelError: no such folder.
        WeightsError: weights that do not fit its config.
    """
    config = read_config(folder)
    kind: Any = model_class(config)
    if worn == ALONE:
        return kind.load(Path(folder), config, dtype, gathered)
    return kind.load(Path(folder), config, dtype, gathered, worn)


def random_model(config: dict[str, Any], seed: int) -> Model:
    """A randomly initialised model of this `config.json`, in float32."""
    return model_class(config).random(config, seed)


def freeze(model: nn.Module) -> nn.Module:
    """Turn gradients off and evaluation mode on, in place; returns the model."""
    return model.requires_grad_(False).eval()
