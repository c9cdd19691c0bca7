"""Attention over the shared layout: the shared part attends to itself, a tail to the shared part and itself.

H heads, D channels per head, T positions in the one row with all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpo.lm.batch import Group


class AttentionError(ValueError):
    """A model needs a feature of attention that the shared layout does not support."""


def shared_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], scale: float | None = None
) -> Tensor:
    """Compute scaled dot-product attention, group by group.

    The shared part and the first tail are computed in one causal call. Each further tail has its own call, with keys
    of the shared part and of itself.

    Args:
        query: [1, H, T, D].
        key, value: [1, heads, T, D]; H is a multiple of their number of heads.
        groups: groups that fill the T positions in order.

    Returns:
        [1, H, T, D].
    """
    # Split once: the gradient of a split is one concatenation, but each slice would add a gradient of full size.
    queries = query.split([n for group in groups for n in _calls(group)], dim=2)
    sizes = [n for group in groups for n in (group.shared, *group.tails)]
    keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
    out, at, call = [], 0, 0
    for group in groups:
        for tail in range(max(1, len(group.tails))):
            own = [at, at + 1 + tail] if group.tails else [at]
            k, v = (torch.cat([part[i] for i in own], dim=2) for part in (keys, values))
            q = queries[call]
            repeats = q.shape[1] // k.shape[1]
            if tail == 0:
                options: dict[str, Any] = {"is_causal": True, "enable_gqa": repeats > 1}
            else:
                options = {"attn_mask": lower_right(q, k)}
                if repeats > 1:  # CUDA's kernels support a mask or grouped heads, but not both
                    k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
            out.append(F.scaled_dot_product_attention(q, k, v, scale=scale, **options))
            call += 1
        at += 1 + len(group.tails)
    return torch.cat(out, dim=2)


def _calls(group: Group) -> list[int]:
    """Return the number of queries in each call of a group."""
    return [group.shared + sum(group.tails[:1]), *group.tails[1:]]


def lower_right(query: Tensor, key: Tensor) -> Tensor:
    """Return a causal mask that aligns the last query with the last key: [queries, keys] bool."""
    n, m = query.shape[2], key.shape[2]
    return torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)


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
    groups: Sequence[Group] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Offer `shared_attention` under the interface of transformers' attention functions.

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
    if groups is None:
        raise AttentionError(f"{type(module).__name__} does not pass on the groups of the shared layout")
    return shared_attention(query, key, value, groups, scaling).transpose(1, 2).contiguous(), None


def tails_apart(groups: Sequence[Group], rows: int, width: int, device: torch.device) -> Tensor:
    """Return the mask that keeps tails apart, with one row per group: [rows, 1, width, width] bool, not causal."""
    part = torch.zeros(rows, width, dtype=torch.int64)  # 0: the shared part, and padding; 1, 2, ...: the tails
    for row, group in enumerate(groups):
        lengths = torch.tensor(group.tails, dtype=torch.int64)
        tails = torch.repeat_interleave(torch.arange(1, len(group.tails) + 1), lengths)
        part[row, group.shared : group.shared + len(tails)] = tails
    part = part.to(device)
    return ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))[:, None]
