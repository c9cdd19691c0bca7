"""Attention over the shared layout: the shared part attends to itself, a tail to the shared part and itself.

H heads, D channels per head, T positions in the one row with all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpo.lm.products import is_narrow
from dpo.lm.segments import Group, Segments, tail_masks
from dpo.lm.varlen import installed, takes, varlen_attention


class AttentionError(ValueError):
    """A model needs a feature of attention that the shared layout does not support."""


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    scale: float | None = None,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute scaled dot-product attention, group by group.

    The shared part and the first tail are computed in one causal call. Each further tail has its own call, with keys
    of the shared part and of itself.

    Args:
        query: [1, H, T, D].
        key, value: [1, heads, T, D]; H is a multiple of their number of heads.
        groups: groups that fill the T positions in order.
        masks: what `tail_masks` makes of the groups, if it has been made.

    Returns:
        [1, H, T, D].
    """
    # Split once: the gradient of a split is one concatenation, but each slice would add a gradient of full size.
    queries = query.split([n for group in groups for n in _calls(group)], dim=2)
    sizes = [n for group in groups for n in (group.shared, *group.tails)]
    keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
    next_mask = iter(tail_masks(groups, query.device) if masks is None else masks)
    repeats, grouped = query.shape[1] // key.shape[1], _takes_groups(query)
    out, at, call = [], 0, 0
    for group in groups:
        for tail in range(max(1, len(group.tails))):
            own = [at, at + 1 + tail] if group.tails else [at]
            k, v = (torch.cat([part[i] for i in own], dim=2) for part in (keys, values))
            q = queries[call]
            options: dict[str, Any] = {"is_causal": True} if tail == 0 else {"attn_mask": next(next_mask)}
            if tail == 0 and grouped:
                options["enable_gqa"] = repeats > 1
            elif repeats > 1:  # CUDA's kernels support a mask or grouped heads, but not both
                k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
            out.append(F.scaled_dot_product_attention(q, k, v, scale=scale, **options))
            call += 1
        at += 1 + len(group.tails)
    return torch.cat(out, dim=2)


def _takes_groups(query: Tensor) -> bool:
    """Whether grouped heads cost nothing: in float32 a GPU has but the kernel whose memory grows with T squared."""
    return query.device.type == "cpu" or is_narrow(query.dtype)


def _calls(group: Group) -> list[int]:
    """Return the number of queries in each call of a group."""
    return [group.shared + sum(group.tails[:1]), *group.tails[1:]]


# Arguments of a Hugging Face attention that have no effect in the shared layout. `read` is for the last layer.
HARMLESS = {
    "read", "position_ids", "cache_position", "use_cache", "is_causal", "output_attentions", "return_dict",
    "past_key_values",
}  # fmt: skip


def hugging_face_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Offer attention over segments under the interface of transformers' attention functions: one call where it can be.

    Raises:
        AttentionError: the model needs another feature (a sliding window, a soft-cap, sinks, a bias). Without it the
            numbers would be wrong.
    """
    asked = sorted(name for name, given in others.items() if name not in HARMLESS and given is not None)
    if attention_mask is not None:
        asked.append("attention_mask")
    if dropout:
        asked.append("dropout")
    if asked:
        raise AttentionError(f"{type(module).__name__} asks its attention for {', '.join(asked)}")
    if segments is None:
        raise AttentionError(f"{type(module).__name__} does not pass on the groups of the shared layout")
    segments = segments.on(query.device)
    if takes(query, value):
        out = varlen_attention(query, key, value, segments, scaling, installed())
    else:
        out = shared_attention(query, key, value, segments.groups, scaling, segments.masks)
    return out.transpose(1, 2).contiguous(), None


def tails_apart(groups: Sequence[Group], rows: int, width: int, device: torch.device) -> Tensor:
    """Return the mask that keeps tails apart, with one row per group: [rows, 1, width, width] bool, not causal."""
    part = torch.zeros(rows, width, dtype=torch.int64)  # 0: the shared part, and padding; 1, 2, ...: the tails
    for row, group in enumerate(groups):
        lengths = torch.tensor(group.tails, dtype=torch.int64)
        tails = torch.repeat_interleave(torch.arange(1, len(group.tails) + 1), lengths)
        part[row, group.shared : group.shared + len(tails)] = tails
    part = part.to(device)
    return ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))[:, None]
