"""A model's log-probs, logits and values of the tokens that it is given, with dropout off."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo.lm.modes import evaluating
from ppo.inputs import chunk, positions, scored
from ppo.losses import logprobs_from_logits


class Outputs(NamedTuple):
    """Numbers of the tokens behind the first: column t belongs to the token at t+1."""

    logprobs: Tensor  # (B, T-1), at least float32
    logits: Tensor | None  # (B, T-1, V), divided by the temperature; None from the flat pass, see `ppo.flat`
    values: Tensor  # (B, T-1): the value of what stands up to t
    entropy: Tensor | None = None  # (B, T-1), without gradient, where there are no logits


def forward(model: Any, inputs: dict[str, Tensor], temperature: float = 1.0) -> Outputs:
    """One pass over `inputs` (see `ppo.inputs`) of a value-head model, or of what wraps it."""
    logits, _, values = model(**inputs)
    if temperature != 1.0:
        logits = logits / temperature
    labels = scored(inputs, "input_ids")[:, 1:]
    logits = logits[:, :-1]
    return Outputs(logprobs_from_logits(logits, labels), logits, values[:, :-1])


def forward_in_chunks(
    model: Any,
    inputs: dict[str, Tensor],
    size: int,
    temperature: float = 1.0,
    return_logits: bool = False,
    trim: bool = True,
    gradients: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`forward`, by default without gradients, so many rows at a time: log-probs, logits where asked for, values.

    Rows of like length go together, and with `trim` without the padding that all of them have; there all is 0.
    """
    attended = scored(inputs, "attention_mask")
    order = attended.sum(-1).argsort(descending=True, stable=True)
    parts: list[list[Tensor]] = []
    with torch.set_grad_enabled(gradients):
        for at in order.split(size):
            some, columns = chunk(inputs, at, trim)
            out = forward(model, some, temperature)
            first = columns.start or 0
            around = (first, attended.shape[1] - 1 - first - out.logprobs.shape[1])
            part = [F.pad(out.logprobs, around), F.pad(out.values, around)]
            if return_logits:
                assert out.logits is not None
                part.append(F.pad(out.logits, (0, 0, *around)))
            parts.append(part)
    logprobs, values, *logits = (torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True))
    return logprobs, logits[0] if logits else None, values


def with_positions(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tell a decoder that takes `position_ids` where each token stands: it may not read that from the mask."""
    base = model.pretrained_model
    taken = inspect.signature((base.get_base_model() if model.is_peft_model else base).forward).parameters
    if "position_ids" not in taken or "decoder_input_ids" in inputs:
        return inputs
    return inputs | {"position_ids": positions(inputs["attention_mask"])}


@contextmanager
def dropout_off(model: nn.Module, checkpointing: bool = False) -> Iterator[None]:
    """Evaluation mode inside, for gradients too; afterwards every module is in the mode that it was in.

    With `checkpointing` the layers that can compute their activations again are told that this is training, for only
    then they do; what is inside them is not told. (See `no_dropout_in_layers_`.)
    """
    with evaluating(model):
        for module in model.modules() if checkpointing else ():
            module.training = isinstance(module, GradientCheckpointingLayer)
        yield


def no_dropout_in_layers_(model: nn.Module) -> None:
    """Set the dropout probabilities that checkpointed layers keep as plain numbers to 0, in place."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
