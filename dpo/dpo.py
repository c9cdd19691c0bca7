"""DPO as a module with policy and reference. The signature is that of x-transformers' class; its faults are corrected.

Differences from x-transformers 2.31.10 (`x_transformers/dpo.py`):

- The mask follows the target token; theirs drops the first response token and scores the first pad token.
- `state_dict`, `named_parameters` and `train()` reach the policy alone. Checkpoints of theirs load, reference included.
- The reference is in eval mode always, not only from the first forward on. It may not share trained parameters with
  the policy, and that of a model with tied embeddings has its own head.
- Models may return an object with `.logits`; of an `AutoregressiveWrapper` the network inside is asked.
- Assertions are ValueErrors. Refused too: a beta that is not positive, and rows without a scored token (theirs: ln 2).
- Masks of shape (n,) hold for every row, with and without `pad_id`. Masks of integers are refused; theirs fail later.
- `parameters(recurse=...)` works, and `reduction="sum"` gives the paper's sum over tokens.
- `log_prob_from_model_and_seq` returns [B, n-1] log-probs, in at least float32.

Other divergences than the reverse KL (f-DPO) are not in this class; `dpo.LOSSES` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import Parameter
from x_transformers import AutoregressiveWrapper, XTransformer

from dpo.lm.tied import own_tied_head_
from dpo.losses import PairLogps, dpo_loss


def exists(value: Any) -> bool:
    """Tell whether a value is not None."""
    return value is not None


def freeze_all_layers_(module: nn.Module) -> None:
    """Set requires_grad to False on every parameter, in place."""
    module.requires_grad_(False)


def log_prob_from_model_and_seq(model: nn.Module, seq: Tensor) -> Tensor:
    """Return the log-prob of every token except the first: [B, n] ids -> [B, n-1]. Entry j is for the token at j+1.

    `model` maps ids [B, n-1] to logits [B, n-1, V], or to an object that has them as `.logits`.

    Raises:
        ValueError: the model returns something else; the message names its type.
    """
    logits = _logits(model, seq[:, :-1])
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
    return mask[..., 1:] if mask.shape[-1] == log_probs.shape[-1] + 1 else mask


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    network = model.net if isinstance(model, AutoregressiveWrapper) else model  # the wrapper itself returns a loss
    output = network(ids)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        got = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(output).__name__}"
        raise ValueError(
            f"{_type_of(model)} returns {got} for ids {tuple(ids.shape)}; logits ({ids.shape[0]}, {ids.shape[1]}, V), "
            "or an object with them as .logits, are wanted: give a causal language model"
        )
    return logits


def _type_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _masked_sum(log_probs: Tensor, target_mask: Tensor) -> Tensor:
    return log_probs.masked_fill(~target_mask, 0.0).sum(dim=-1)


class DPO(nn.Module):
    """Direct preference optimisation (arXiv:2305.18290, eq. 7) of `model` against a frozen copy of itself.

    Args:
        model: maps integer ids [B, n] to logits [B, n, V], or to an object that has them as `.logits`, as causal
            models of transformers do. It becomes `policy_model` itself, not a copy. `ref_model` is a frozen deep copy
            in eval mode; another module that is assigned to it takes its place, frozen and in eval mode as well. A
            checkpoint does not hold it: assign it again before going on.
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
        _check_model("model", model)
        own_tied_head_(model)  # otherwise the reference's head would read the policy's embedding
        self.policy_model = model
        self.ref_model = deepcopy(model)
        self.beta = beta
        self.pad_id = pad_id
        self.reduction = reduction

    @property
    def ref_model(self) -> nn.Module:
        return self._reference[0]

    @ref_model.setter
    def ref_model(self, model: nn.Module) -> None:
        """Take `model` itself as the reference: freeze it, and put it into eval mode.

        Raises:
            TypeError: `model` is not a module.
            ValueError: it shares parameters with the policy that are trained, or is an encoder-decoder.
        """
        _check_model("ref_model", model)
        trained = {id(parameter) for parameter in self.policy_model.parameters() if parameter.requires_grad}
        shared = [name for name, parameter in model.named_parameters() if id(parameter) in trained]
        if shared:
            raise ValueError(
                f"ref_model shares {len(shared)} trained parameter(s) with policy_model, such as {shared[0]}: the "
                "reference would move with the policy; give a deep copy"
            )
        own_tied_head_(model)
        freeze_all_layers_(model.eval())
        # Held in a tuple, so that parameters(), state_dict() and train() never reach the reference.
        self._reference = (model,)

    def __setattr__(self, name: str, value: Any) -> None:
        """Leave `ref_model` to its setter: nn.Module would register any module, and pass the setter by."""
        if name == "ref_model":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Return the parameters of the policy only."""
        return self.policy_model.parameters(recurse)

    def _apply(self, fn: Any, recurse: bool = True) -> DPO:
        self.ref_model._apply(fn, recurse)  # .to(device) and .double() move both models
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load `ref_model.*`, which x-transformers' checkpoints hold, into the reference; the rest as torch does."""
        mark = f"{prefix}ref_model."
        reference = {key.removeprefix(mark): value for key, value in state_dict.items() if key.startswith(mark)}
        others = {key: value for key, value in state_dict.items() if not key.startswith(mark)}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not reference:  # a checkpoint of the policy alone
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        try:
            found = self.ref_model.load_state_dict(reference, strict=False, assign=assign)
        except RuntimeError as error:  # a tensor of another shape
            error_msgs.append(f"{mark.removesuffix('.')}: {error}")
            return
        missing_keys += [mark + name for name in found.missing_keys]
        unexpected_keys += [mark + name for name in found.unexpected_keys]
        freeze_all_layers_(self.ref_model)  # assigned tensors may ask for gradients

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
            prompt_mask: [B, n] bool, true on prompt positions, for both sequences; [n] holds for every row.
            preferred_seq_mask, unpreferred_seq_mask: [B, n] or [n] bool, true on real tokens; each replaces the mask
                from `pad_id`.

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
        prompt = _full_mask("prompt_mask", prompt_mask, seq)
        real = None if seq_mask is None else _full_mask(f"{name}_mask", seq_mask, seq)
        target_mask = maybe_and_mask(~prompt, real)[:, 1:]  # type: ignore[index]
        empty = (~target_mask.any(dim=-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{name} has no token to score in row(s) {empty}: all are prompt or padding")
        log_probs = log_prob_from_model_and_seq(model, seq)
        return masked_mean(log_probs, target_mask) if self.reduction == "mean" else _masked_sum(log_probs, target_mask)


def _full_mask(name: str, mask: Tensor, seq: Tensor) -> Tensor:
    """Return a mask [B, n], from one of that shape, of [1, n] or of [n]."""
    rows, length = seq.shape
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((rows, length), (1, length), (length,)):
        raise ValueError(
            f"{name} must be bool with shape {(rows, length)} or {(length,)}, it is {mask.dtype} {tuple(mask.shape)}; "
            "make a mask of 0 and 1 bool with .bool()"
        )
    return mask.expand_as(seq)


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, it is {_type_of(model)}: {model!r}")
    if isinstance(model, XTransformer) or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{name} must be a causal language model, {_type_of(model)} is an encoder-decoder")


def _check_ids(preferred: Tensor, unpreferred: Tensor) -> None:
    if preferred.ndim != 2 or preferred.shape != unpreferred.shape:
        raise ValueError(
            "both sequences must have one shape [B, n], "
            f"they have {tuple(preferred.shape)} and {tuple(unpreferred.shape)}"
        )
    for name, seq in (("preferred_seq", preferred), ("unpreferred_seq", unpreferred)):
        if seq.is_floating_point() or seq.dtype == torch.bool:
            raise ValueError(f"{name} must hold integer token ids, it is {seq.dtype}")
