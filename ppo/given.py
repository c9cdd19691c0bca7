"""The arguments of a step, looked at before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def checked_step(
    batch_size: int,
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    scores: Sequence[Tensor | float],
    response_masks: Sequence[Tensor] | None = None,
    vocabulary: int | None = None,
    started: bool = False,
) -> Tensor:
    """The scores as one float32 tensor (batch_size,).

    `vocabulary`: how many tokens the model knows, None: not looked at. `started`: responses begin with the decoder's
    start token, which does not count.

    Raises:
        ValueError: a wrong type, number, shape, length or token; the message names the item.
    """
    masks = [] if response_masks is None else [("response_masks", response_masks)]
    for name, items in (("queries", queries), ("responses", responses), ("scores", scores), *masks):
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"{name} must be a list of tensors, one a sample, not {type(items).__name__}")
        if len(items) != batch_size:
            raise ValueError(f"{name} has {len(items)} items; config.batch_size is {batch_size}")
        for i, item in enumerate(items):
            if name == "scores":
                _check_score(i, item)
            elif not isinstance(item, Tensor):
                raise ValueError(f"{name}[{i}] must be a tensor, not {type(item).__name__}: {item!r}")
            elif item.dim() != 1:
                raise ValueError(f"{name}[{i}] has shape {tuple(item.shape)}: it must be one sequence, (length,)")
            elif name != "response_masks":
                check_tokens(f"{name}[{i}]", item, vocabulary)
    for i, mask in enumerate(response_masks or ()):
        _check_mask(i, mask, responses[i], started)
    return torch.stack([torch.as_tensor(score).detach().reshape(()).float().cpu() for score in scores])


def check_tokens(name: str, tokens: Any, vocabulary: int | None) -> None:
    """Raise a ValueError unless `tokens` is one sequence of token ids of the model, without padding."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 1:
        what = f"a tensor {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{name} must be a tensor of shape (length,), not {what}; give a list for several")
    if not len(tokens):
        raise ValueError(f"{name} is empty: every query and response needs at least one token")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"{name} must hold token ids, whole numbers, not {tokens.dtype}")
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or (vocabulary is not None and most >= vocabulary):
        raise ValueError(
            f"{name} holds token {least if least < 0 else most}; the model knows tokens 0 to "
            f"{'' if vocabulary is None else vocabulary - 1}: does the tokenizer belong to the model?"
        )


def _check_score(i: int, score: Any) -> None:
    if not isinstance(score, (Tensor, int, float)) or isinstance(score, bool):
        raise ValueError(f"scores[{i}] must be a number or a tensor of one, not {type(score).__name__}: {score!r}")
    score = torch.as_tensor(score)
    if score.numel() != 1 or score.dim() > 1:
        raise ValueError(f"scores[{i}] has shape {tuple(score.shape)}: a score is one number a sample")
    if not score.float().isfinite():
        raise ValueError(f"scores[{i}] = {float(score)}: a score must be a finite number")


def _check_mask(i: int, mask: Tensor, response: Tensor, started: bool) -> None:
    if len(mask) != len(response):
        raise ValueError(f"response_masks[{i}] has {len(mask)} entries, its response {len(response)} tokens")
    odd = mask[(mask != 0) & (mask != 1)]
    if len(odd):
        raise ValueError(f"response_masks[{i}] holds {odd[0].item()}: 1 is a token that counts, 0 one that does not")
    counted = mask[int(started) :]
    if len(counted) and not counted.any():
        raise ValueError(f"response_masks[{i}] leaves no token of its response: the score has no place to go")


def check_lengths(inputs: dict[str, Tensor], limit: int | None) -> None:
    """Raise a ValueError for a sequence that is longer than the model has positions for."""
    for name, mask in inputs.items():
        if name.endswith("attention_mask") and limit is not None and mask.shape[1] > limit:
            longest = mask.sum(-1)
            raise ValueError(
                f"sample {int(longest.argmax())} has {int(longest.max())} tokens, padded to {mask.shape[1]}; the model "
                f"has positions for {limit}: shorten queries or max_new_tokens"
            )


def check_finite(logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, mask: Tensor) -> None:
    """Raise a FloatingPointError for a model whose first pass is not finite where it counts."""
    said = {"the policy's log-probs": logprobs, "the reference's log-probs": ref_logprobs, "the values": values}
    for name, numbers in said.items():
        broken = (~numbers.isfinite() & mask.bool()).any(-1).nonzero().flatten().tolist()
        if broken:
            raise FloatingPointError(
                f"{name} of samples {broken[:4]} are not finite, before any update: look at that model's weights "
                "and dtype, and whether it may say the tokens of these responses at all"
            )


def habits(queries: list[Tensor], responses: list[Tensor], pad_id: int, ends: list[int], started: bool) -> list[str]:
    """Arguments that look as if they were given in another form than a step takes them; one sentence each."""
    found = []
    if pad_id not in ends:
        if any(int(q[0]) == pad_id or int(q[-1]) == pad_id for q in queries):
            found.append("a query begins or ends with the padding token: give queries without padding")
        if any(int(r[-1]) == pad_id for r in responses if len(r) > 1):
            found.append("a response ends with the padding token, which is trained like any other: cut it off")
    if any(len(r) > 2 and int(r[-1]) in ends and int(r[-2]) in ends for r in responses):
        found.append("a response goes on behind its end token: cut it after the first one")
    pairs = list(zip(queries, responses, strict=True))
    if not started and all(len(r) > len(q) and torch.equal(r[: len(q)], q) for q, r in pairs):
        found.append("every response begins with its query: generate them with return_prompt=False")
    return found
