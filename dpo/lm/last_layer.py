"""The last layer computes only what is read: behind it nobody looks at positions that predict no scored token.

Their keys and values are needed still, their queries, outputs and feed-forward are not. T positions, n of them read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

# Parts of a decoder layer that work on each position for itself. A layer that has others computes them in full.
BY_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


class ReadPositions:
    """Which positions of the batch that is now in the last layer are read; None: all."""

    positions: Tensor | None = None

    def enter(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        """Before the layer's forward, also when it is computed again in the backward pass."""
        self.positions = kwargs.get("read")

    def compute(self, forward: Callable[..., Tensor], hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        """[1, T, d] -> [1, T, e], zero where nobody reads. A part that takes more than that is computed in full."""
        if self.positions is None or others or named:
            return forward(hidden, *others, **named)
        out = forward(hidden.index_select(1, self.positions))
        return out.new_zeros(*hidden.shape[:2], out.shape[-1]).index_copy(1, self.positions, out)


def compute_what_is_read_(body: nn.Module) -> None:
    """Let the last layer of a Hugging Face model compute the positions that are read, in place; once is enough."""
    layers = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or any(isinstance(getattr(hook, "__self__", None), ReadPositions) for hook in _hooks(layers[-1])):
        return
    parts = dict(layers[-1].named_modules())
    chosen = [parts[name] for name in BY_POSITION if name in parts]
    read = ReadPositions()
    layers[-1].register_forward_pre_hook(read.enter, with_kwargs=True)
    for part in chosen:
        if type(part).__name__.endswith(("Linear", "MLP")):  # not a mixture of experts, which answers with more
            part.forward = partial(read.compute, part.forward)


def _hooks(layer: nn.Module) -> list[Any]:
    return list(layer._forward_pre_hooks.values())
