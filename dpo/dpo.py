"""DPO as a module with policy and reference. The signature is that of x-transformers' class; its faults are corrected.

Differences from x-transformers 2.31.10 (`x_transformers/dpo.py`): the mask follows the target token (theirs drops the
first response token and scores the first pad token); `parameters(recurse=...)` works; checkpoints contain only the
policy; the reference of a model with tied embeddings has its own head; rows without a scored token are refused; and
`reduction="sum"` gives the paper's sum over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import Parameter

from dpo.lm.tied import own_tied_head_
from dpo.losses import PairLogps, dpo_loss


def exists(value: Any) -> bool:
    """Tell whether a value is not None."""
    return value is not None


def freeze_all_layers_(module: nn.Module) -> None:
    """Set requires_grad to False on every parameter, in place."""
    for parameter in module.parameters():
        parameter.requires_grad = False


def log_prob_from_model_and_seq(model: nn.Module, seq: Tensor) -> Tensor:
    """Return the log-prob of every token except the first: [B, n] ids -> [B, n-1]. Entry j is for the token at j+1.

    `model` maps ids [B, n-1] to logits [B, n-1, V].
    """
    logits = model(seq[:, :-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = rearrange(seq[:, 1:], "b n -> b n 1")
    return rearrange(logits.log_softmax(dim=-1).gather(-1, targets), "b n 1 -> b n")


def masked_mean(log_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the last axis, [B, n] -> [B].

    A mask that is one entry longer than `log_probs` covers the full sequence: its first entry is dropped, because no
    position predicts the first token. A row with an empty mask gives 0.
    """
    if mask is None:
        return log_probs.mean(dim=-1)
    target_mask = _target_mask(mask, log_probs)
    return _masked_sum(log_probs, target_mask) / target_mask.sum(dim=-1).clamp(min=1)


def maybe_and_mask(*masks: Tensor | None) -> Tensor | None:
    """Combine the masks that are not None with AND. Return None if all are None."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    result, *rest = given
    for mask in rest:
        result = result & mask
    return result


def _target_mask(mask: Tensor, log_probs: Tensor) -> Tensor:
    return mask[:, 1:] if mask.shape[-1] == log_probs.shape[-1] + 1 else mask


def _masked_sum(log_probs: Tensor, target_mask: Tensor) -> Tensor:
    return log_probs.masked_fill(~target_mask, 0.0).sum(dim=-1)


class DPO(nn.Module):
    """Direct preference optimisation (arXiv:2305.18290, eq. 7) of `model` against a frozen copy of itself.

    Args:
        model: maps integer ids [B, n] to logits [B, n, V]; an x_transformers TransformerWrapper does. It becomes
            `policy_model` itself, not a copy. `ref_model` is a frozen deep copy in eval mode.
        beta: strength of the pull to the reference, > 0; a larger beta keeps the policy closer to it.
        pad_id: if given, masks default to `seq != pad_id`. If the end token is also the pad token, omit it and pass
            masks.
        reduction: a completion's log-prob is the "mean" over its tokens, as in x-transformers, or their "sum", as in
            the paper.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float = 0.1,
        pad_id: int | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ):
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta must be greater than 0, it is {beta}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", it is {reduction!r}')
        own_tied_head_(model)  # otherwise the reference's head would read the policy's embedding
        self.policy_model = model
        # Held in a tuple, so that parameters(), state_dict() and train() never reach the reference.
        reference = deepcopy(model).eval()
        freeze_all_layers_(reference)
        self._reference = (reference,)
        self.beta = beta
        self.pad_id = pad_id
        self.reduction = reduction

    @property
    def ref_model(self) -> nn.Module:
        return self._reference[0]

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Return the parameters of the policy only."""
        return self.policy_model.parameters(recurse)

    def _apply(self, fn: Any, recurse: bool = True) -> DPO:
        self.ref_model._apply(fn, recurse)  # .to(device) and .double() move both models
        return super()._apply(fn, recurse)

    def forward(
        self,
        preferred_seq: Tensor,
        unpreferred_seq: Tensor,
        *,
        prompt_mask: Tensor,
        preferred_seq_mask: Tensor | None = None,
        unpreferred_seq_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the mean DPO loss of B pairs, a scalar with gradient to the policy only.

        Args:
            preferred_seq, unpreferred_seq: [B, n] integer ids, prompt included, padded on the right.
            prompt_mask: [B, n] bool, true on prompt positions, for both sequences.
            preferred_seq_mask, unpreferred_seq_mask: [B, n] bool, true on real tokens; replaces the mask from `pad_id`.

        Raises:
            ValueError: shapes or dtypes are wrong, or a row has no token to score.
        """
        _check_ids(preferred_seq, unpreferred_seq)
        logps = []
        for model, grad in ((self.policy_model, torch.is_grad_enabled()), (self.ref_model, False)):
            with torch.set_grad_enabled(grad):
                logps.append(
                    PairLogps(
                        self._completion_logps(model, "preferred_seq", preferred_seq, prompt_mask, preferred_seq_mask),
                        self._completion_logps(
                            model, "unpreferred_seq", unpreferred_seq, prompt_mask, unpreferred_seq_mask
                        ),
                    )
                )
        policy, reference = logps
        return dpo_loss(policy, reference, beta=self.beta).mean()

    def _completion_logps(
        self, model: nn.Module, name: str, seq: Tensor, prompt_mask: Tensor, seq_mask: Tensor | None
    ) -> Tensor:
        if seq_mask is None and self.pad_id is not None:
            seq_mask = seq != self.pad_id
        for label, mask in (("prompt_mask", prompt_mask), (f"{name}_mask", seq_mask)):
            if mask is not None and (mask.dtype != torch.bool or mask.shape != seq.shape):
                raise ValueError(
                    f"{label} must be bool with shape {tuple(seq.shape)}, it is {mask.dtype} {tuple(mask.shape)}"
                )
        target_mask = maybe_and_mask(~prompt_mask, seq_mask)[:, 1:]  # type: ignore[index]
        empty = (~target_mask.any(dim=-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{name} has no token to score in row(s) {empty}: all are prompt or padding")
        log_probs = log_prob_from_model_and_seq(model, seq)
        return masked_mean(log_probs, target_mask) if self.reduction == "mean" else _masked_sum(log_probs, target_mask)


def _check_ids(preferred: Tensor, unpreferred: Tensor) -> None:
    if preferred.ndim != 2 or preferred.shape != unpreferred.shape:
        raise ValueError(
            "both sequences must have one shape [B, n], "
            f"they have {tuple(preferred.shape)} and {tuple(unpreferred.shape)}"
        )
    for name, seq in (("preferred_seq", preferred), ("unpreferred_seq", unpreferred)):
        if seq.is_floating_point() or seq.dtype == torch.bool:
            raise ValueError(f"{name} must hold integer token ids, it is {seq.dtype}")
