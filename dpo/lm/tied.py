"""x-transformers' tied output head, made safe to copy."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn


def own_tied_head_(network: nn.Module) -> None:
    """Bind every tied head in `network` to its own wrapper, in place. The result of the head does not change.

    x-transformers (2.31.10) ties the head with a lambda that closes over the wrapper. deepcopy shares functions, so
    the head of a copy would read the embedding of the *original*: the reference would move with the policy. The
    arguments of a partial, however, are copied.
    """
    for module in network.modules():
        if "tie_embedding_scale" in vars(module):  # only a TransformerWrapper with a tied head has this
            module.to_logits = partial(_tied_logits, module)  # type: ignore[assignment]


def _tied_logits(wrapper: nn.Module, hidden: Tensor) -> Tensor:
    return (hidden @ wrapper.token_emb.emb.weight.t()) * wrapper.tie_embedding_scale  # type: ignore[union-attr, operator]
