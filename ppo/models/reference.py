"""The frozen model that the KL penalty measures the policy against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from x_transformers import TransformerWrapper

from dpo.lm.models import freeze
from dpo.lm.tied import own_tied_head_
from dpo.lm.weights import partitioned
from ppo.said import warn

# What begins the parameter names of layer n, in the families of Hugging Face models; the first that occurs counts.
PATTERNS = (
    "transformer.h.{layer}",
    "model.decoder.layers.{layer}",
    "gpt_neox.layers.{layer}",
    "model.layers.{layer}",
)

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def create_reference_model(
    model: AnyModel, num_shared_layers: int | None = None, pattern: str | None = None
) -> AnyModel:
    """A frozen copy of `model` in evaluation mode, which may share its first layers with it.

    Shared are the parameters that are declared before those of layer `num_shared_layers`, embeddings first. They are
    the very same parameters in both models, in memory once, and frozen in both. (In TRL before 1.12 the copies took
    memory of their own and still asked for gradients.)

    Args:
        model: a model with a value head, or a plain one, of Hugging Face or x-transformers.
        num_shared_layers: n shares layers 0 to n-1 and the embeddings; 0 the embeddings alone; None nothing.
        pattern: how the names of layer n's parameters begin, or a part of it, with `{layer}` for n; found by itself
            for the common families of models and for x-transformers.

    Raises:
        ValueError: n is negative or names no layer of the model, no layer is found, or the parameters are partitioned
            by ZeRO-3.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a loaded model, not {type(model).__name__}: {model!r}. Load it first.")
    parameters = list(model.parameters())
    if is_deepspeed_zero3_enabled() or any(map(partitioned, parameters)):
        raise ValueError(
            f"{type(model).__name__} is partitioned over ranks (DeepSpeed ZeRO stage 3), so no rank has what a copy "
            "needs. Load the reference from the folder that the policy came from, and give it as ref_model; or use a "
            "lower stage."
        )
    own_tied_head_(model)  # else the head of the copy would read the embedding of the original
    shared: dict[str, nn.Parameter] = {}
    if num_shared_layers is not None:
        shared = _before_layer(model, num_shared_layers, pattern)
        _warn_of_ties(model, shared)
    for parameter in shared.values():
        parameter.requires_grad_(False)
        parameter.grad = None  # or an optimizer would still apply it
    reference = deepcopy(model, {id(parameter): parameter for parameter in shared.values()})
    freeze(reference)
    return reference


def _before_layer(model: nn.Module, layer: int, pattern: str | None) -> dict[str, nn.Parameter]:
    """The parameters declared before the first of a layer, by name."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise ValueError(
            f"num_shared_layers is {layer!r} and has to be a whole number from 0 (the embeddings alone) to one less "
            "than the model has layers, or None to share nothing."
        )
    named = list(model.named_parameters())
    names = [name for name, _ in named]
    wanted = _patterns(model, layer) if pattern is None else [pattern.replace("{layer}", str(layer))]
    # A number ends where the digits end: layer 1 is not layer 10.
    found = [[bool(re.search(re.escape(part) + r"(?!\d)", name)) for name in names] for part in wanted]
    at = next((hits.index(True) for hits in found if any(hits)), None)
    if at is None:
        raise ValueError(
            f"num_shared_layers = {layer}: no parameter of {type(model).__name__} is named like "
            f"{' or '.join(map(repr, wanted))}. Share fewer layers than the model has, or give pattern, such as "
            f"'encoder.block.{{layer}}', that fits its names: {_some(names)}."
        )
    return dict(named[:at])


def _patterns(model: nn.Module, layer: int) -> list[str]:
    """How the parameters of a layer may be named."""
    for module in model.modules():
        if isinstance(module, TransformerWrapper):
            kinds: Any = module.attn_layers.layer_types
            if kinds != ("a", "f") * (len(kinds) // 2):
                raise ValueError(
                    f"The entries of attn_layers.layers are {''.join(kinds)!r} and not attention and feed-forward in "
                    "turn, so what a layer is cannot be told. Give pattern='attn_layers.layers.K', K being the first "
                    "entry that is not shared."
                )
            return [f"attn_layers.layers.{2 * layer}"]  # attention and feed-forward are entries of their own
    return [pattern.format(layer=layer) for pattern in PATTERNS]


def _warn_of_ties(model: nn.Module, shared: dict[str, nn.Parameter]) -> None:
    """Say which shared parameters are also used behind the shared layers, under another name."""
    frozen = {id(parameter): name for name, parameter in shared.items()}
    ties = {
        name: frozen[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in frozen and name not in shared
    }
    for name, module in model.named_modules():
        if isinstance(module, TransformerWrapper) and "tie_embedding_scale" in vars(module):  # only one that ties
            prefix = f"{name}." if name else ""
            ties[f"{prefix}to_logits"] = f"{prefix}token_emb.emb.weight"
    if ties:
        said = ", ".join(f"{name} is {first}" for name, first in ties.items())
        warn(
            f"The model ties weights across the shared layers ({said}): sharing freezes them there too, so the policy "
            "does not train them. Untie the weights before if they should be trained."
        )


def _some(names: Sequence[Any]) -> str:
    return ", ".join(names[:3]) + (f" ... {names[-1]}" if len(names) > 3 else "")
