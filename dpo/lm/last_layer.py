"""The last layer, computed only where it is read: later code never reads positions that predict no scored token.

At those positions, keys and values are still needed, but queries, outputs and feed-forward are not. T positions, n of
them read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

# Parts of a decoder layer that work on each position separately. Other parts are computed at all positions.
BY_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


class ReadPositions:
    """The positions to read in the batch that the last layer is computing; None for all."""

    positions: Tensor | None = None

    def enter(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        """Take the positions from the layer's arguments. Runs before each forward, even in a recomputation."""
        self.positions = kwargs.get("read")

    def compute(self, forward: Callable[..., Tensor], hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        """Compute a part of the layer, [1, T, d] -> [1, T, e], with zeros at positions that are not read.

        A part that takes further arguments is computed at all positions.
        """
        if self.positions is None or others or named:
            return forward(hidden, *others, **named)
        out = forward(hidden.index_select(1, self.positions))
        return out.new_zeros(*hidden.shape[:2], out.shape[-1]).index_copy(1, self.positions, out)


def compute_what_is_read_(body: nn.Module) -> None:
    """Restrict the last layer of a Hugging Face model to the positions that are read, in place. Repeats do nothing."""
    layers = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or any(isinstance(getattr(hook, "__self__", None), ReadPositions) for hook in _hooks(layers[-1])):
        return
    parts = dict(layers[-1].named_modules())
    chosen = [parts[name] for name in BY_POSITION if name in parts]
    read = ReadPositions()
    layers[-1].register_forward_pre_hook(read.enter, with_kwargs=True)
    for part in chosen:
        inside = getattr(part, "base_layer", part)  # of a linear layer with an adapter
        # Not a mixture of experts, which returns more than one tensor.
        if isinstance(inside, nn.Linear) or type(part).__name__.endswith(("Linear", "MLP")):
            part.forward = partial(read.compute, part.forward)


def _hooks(layer: nn.Module) -> list[Any]:
    return list(layer._forward_pre_hooks.values())
