"""x-transformers' tied output head, made safe to copy."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dpo.lm.head import LinearHeadLogps, Logps


class TiedHead:
    """The embedding of a TransformerWrapper as its head, times a scale; returns log-probs if called with targets."""

    def __init__(self, wrapper: Any):
        self.wrapper = wrapper

    def __call__(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        agreement: bool = False,
        entropy: bool = False,
        scale: float = 1.0,
    ) -> Any:
        weight, own = self.wrapper.token_emb.emb.weight, self.wrapper.tie_embedding_scale
        if targets is None:
            return (hidden @ weight.t()) * own
        found: Any = LinearHeadLogps.apply(hidden, weight, None, targets, agreement, own * scale, None, entropy)
        return Logps(*found)


def own_tied_head_(network: nn.Module) -> None:
    """Bind every tied head in `network` to its own wrapper, in place. The result of the head does not change.

    x-transformers (2.31.10) ties the head with a lambda that closes over the wrapper. deepcopy shares functions, so
    the head of a copy would read the embedding of the *original*: the reference would move with the policy. The
    attributes of an object, however, are copied.
    """
    for module in network.modules():
        if "tie_embedding_scale" in vars(module):  # only a TransformerWrapper with a tied head has this
            module.to_logits = TiedHead(module)  # type: ignore[assignment]
