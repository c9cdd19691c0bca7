"""The value head: one number for every position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    def __init__(self, config: Any, summary_dropout_prob: float | None = 0.1):
        """A dropout and a linear layer to one number, for hidden states as wide as `config` says.

        The head is float32 whatever the type of the model it stands on: a value is a regression target, and
        bfloat16 has three digits.

        Args:
            config: a model's configuration. Where it has a `summary_dropout_prob`, that is the dropout.
            summary_dropout_prob: the dropout otherwise; 0 or None is none.

        Raises:
            ValueError: the configuration tells no hidden size, or the dropout is no probability.
        """
        super().__init__()
        # TRL's rule, a configuration before a keyword, decides which dropout a saved folder comes back with.
        chosen = getattr(config, "summary_dropout_prob", summary_dropout_prob) or 0.0
        if not 0 <= chosen < 1:
            raise ValueError(
                f"summary_dropout_prob is {chosen!r} and has to be in [0, 1), or None for no dropout. Change it in the "
                "model's configuration where it stands there, else in the keyword."
            )
        self.dropout = nn.Dropout(chosen) if chosen else nn.Identity()
        self.summary = nn.Linear(hidden_size(config), 1, dtype=torch.float32)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, d] of any floating dtype -> [B, T, 1] in the head's own."""
        return self.summary(self.dropout(hidden).to(self.summary.weight.dtype))

    def init_weights_(self, strategy: str | None, spread: float) -> None:
        """Initialise the linear layer, in place.

        Args:
            strategy: None keeps torch's own initialisation; "normal" draws weights from N(0, spread) and sets the
                bias to 0.
            spread: the standard deviation of "normal".

        Raises:
            ValueError: another strategy. (TRL took any other word for None.)
        """
        if strategy is None:
            return
        if strategy != "normal":
            raise ValueError(
                f"v_head_init_strategy is {strategy!r}, and there are two: None (torch's own initialisation of a "
                'linear layer) and "normal" (weights from N(0, v_head_initializer_range), bias 0). Give one of them.'
            )
        nn.init.normal_(self.summary.weight, std=spread)
        nn.init.zeros_(self.summary.bias)

    def fill_(self, saved: Mapping[str, Tensor]) -> None:
        """Load a saved head, in place; out of nothing, do nothing.

        Raises:
            ValueError: it is incomplete, or has other names or shapes than this one.
        """
        own = self.state_dict()
        if saved and _shapes(saved) != _shapes(own):
            raise ValueError(
                f"The saved value head is {_shapes(saved)}, and this model's is {_shapes(own)}. Load it with the base "
                "model that it was trained on, or remove its weights to start with a new head."
            )
        self.load_state_dict(saved or own)


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items()))


def hidden_size(config: Any) -> int:
    """How wide the hidden states are that a model's output head reads.

    The first that is there of `word_embed_proj_dim` (models that project behind their last layer, as OPT-350m),
    `hidden_size`, and the same two of `text_config` (models of several kinds of input) and of `decoder` (compositions
    of an encoder and a decoder).

    Raises:
        ValueError: none of them is there.
    """
    for part in (config, getattr(config, "text_config", None), getattr(config, "decoder", None)):
        for name in ("word_embed_proj_dim", "hidden_size"):
            size = getattr(part, name, None)
            if size is not None:
                return size
    raise ValueError(
        f"{type(config).__name__} tells no hidden size: it has neither word_embed_proj_dim nor hidden_size, and no "
        "text_config or decoder that has one. Set config.hidden_size to the width of the model's last hidden states."
    )
