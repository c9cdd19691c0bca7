"""Attention over the shared layout: the shared part sees itself, a tail sees the shared part and itself.

H heads, D channels a head, T positions of the one row that holds all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpo.lm.batch import Group


class AttentionError(ValueError):
    """A model asks of the attention what the shared layout does not have."""


def shared_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], scale: float | None = None
) -> Tensor:
    """Scaled dot-product attention, group by group.

    The first tail runs together with the shared part in one causal call; each further tail in a call of its own,
    against the shared part and itself.

    Args:
        query: [1, H, T, D].
        key, value: [1, heads, T, D]; H is a multiple of their heads.
        groups: they fill the T positions in order.

    Returns:
        [1, H, T, D].
    """
    # One split each: its gradient is one concatenation, where slices would add up as many tensors of full size.
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
                if repeats > 1:  # CUDA's kernels take a mask or grouped heads, not both
                    k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
            out.append(F.scaled_dot_product_attention(q, k, v, scale=scale, **options))
            call += 1
        at += 1 + len(group.tails)
    return torch.cat(out, dim=2)


def _calls(group: Group) -> list[int]:
    """How many queries each call of a group has."""
    return [group.shared + sum(group.tails[:1]), *group.tails[1:]]


def lower_right(query: Tensor, key: Tensor) -> Tensor:
    """Causal where the last query belongs to the last key: [queries, keys] bool."""
    n, m = query.shape[2], key.shape[2]
    return torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)


# Arguments of a Hugging Face attention that change nothing in the shared layout; `read` is for the last layer.
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
    """`shared_attention` behind the interface of transformers' attention functions.

    Raises:
        AttentionError: the model asks for more than that (a sliding window, a soft-cap, sinks, a bias): computed
            without it, the numbers would be wrong.
    """
    asked = sorted(name for name, given in others.items() if name not in HARMLESS and given is not None)
    if attention_mask is not None:
        asked.append("attention_mask")
    if dropout:
        asked.append("dropout")
    if asked:
        raise AttentionError(f"{type(module).__name__} asks its attention for {', '.join(asked)}")
    if groups is None:
        raise AttentionError(f"{type(module).__name__} does not hand on the groups of the shared layout")
    return shared_attention(query, key, value, groups, scaling).transpose(1, 2).contiguous(), None


def tails_apart(groups: Sequence[Group], rows: int, width: int, device: torch.device) -> Tensor:
    """Who may look at whom where every group has a row: [rows, 1, width, width] bool, to be joined with causality."""
    part = torch.zeros(rows, width, dtype=torch.int64)  # 0: the shared part; 1, 2, ...: the tails; padding too
    for row, group in enumerate(groups):
        lengths = torch.tensor(group.tails, dtype=torch.int64)
        tails = torch.repeat_interleave(torch.arange(1, len(group.tails) + 1), lengths)
        part[row, group.shared : group.shared + len(tails)] = tails
    part = part.to(device)
    return ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))[:, None]
