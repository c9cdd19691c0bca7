"""Queries and responses of different lengths -> the tensors that a model is given, and which of their tokens count.

T is the padded length. Column t of every (B, T-1) tensor belongs to the token at t+1: the logits at t predict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpo.lm.sequences import TokenSequence


def decoder_inputs(
    queries: Sequence[Tensor], responses: Sequence[Tensor], pad_id: int, side: str, width: int | None = None
) -> dict[str, Tensor]:
    """Each query with its response behind it: `input_ids`, `attention_mask`, both (B, T).

    The mask is made from the lengths, so that the padding token may also stand in a text.

    Raises:
        ValueError: a sequence is longer than `width`, the fixed T asked for.
    """
    return padded([torch.cat(pair) for pair in zip(queries, responses, strict=True)], pad_id, side, width)


def encoder_decoder_inputs(
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    pad_id: int,
    side: str,
    start_id: int | None,
    query_width: int | None = None,
    width: int | None = None,
) -> dict[str, Tensor]:
    """Queries for the encoder, responses (with the start token in front) for the decoder, each with its mask.

    Raises:
        ValueError: a response that does not begin with `start_id`, or has nothing behind it.
    """
    for i, response in enumerate(responses):
        if start_id is not None and int(response[0]) != start_id:
            raise ValueError(
                f"responses[{i}] begins with token {int(response[0])}, not with the decoder's start token {start_id}: "
                "pass what generate returned, start token included"
            )
        if len(response) < 2:
            raise ValueError(f"responses[{i}] has no token behind the decoder's start token")
    outputs = padded(responses, pad_id, "right", width, "response")
    return padded(queries, pad_id, side, query_width, "query") | {
        f"decoder_{name}": value for name, value in outputs.items()
    }


def padded(
    sequences: Sequence[Tensor], pad_id: int, side: str, width: int | None = None, kind: str = "query with response"
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, (B, T), padded on the left or right to the longest, or to `width`."""
    longest = max(map(len, sequences))
    if width is not None and longest > width:
        raise ValueError(f"a {kind} has {longest} tokens, more than the fixed length {width}")
    width = width or longest
    ids = sequences[0].new_full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        at = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        ids[row, at] = sequence.long()
        mask[row, at] = 1
    return {"input_ids": ids, "attention_mask": mask}


def positions(attention_mask: Tensor) -> Tensor:
    """Each token's place behind the first real one of its row, (B, T); on padding before that 0.

    Without them a model with absolute positions reads a row that is padded on the left at shifted places.
    """
    first = attention_mask.argmax(-1, keepdim=True)
    return (torch.arange(attention_mask.shape[-1], device=first.device) - first).clamp(min=0)


def response_mask(
    inputs: dict[str, Tensor],
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
    response_masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """1 where a token of a response is predicted, (B, T-1) int64: column t stands for the token at t+1.

    Of an encoder-decoder that is every token behind the decoder's start token. `response_masks`, one 0 or 1 a token of
    each response, take further tokens out. (TRL never trains the first token that an encoder-decoder generates.)
    """
    decoder = "decoder_input_ids" in inputs
    attended = scored(inputs, "attention_mask")
    mask = torch.zeros_like(attended)
    for row, (query, response) in enumerate(zip(queries, responses, strict=True)):
        first = int(attended[row].argmax()) + (0 if decoder else len(query))
        kept = torch.ones_like(response) if response_masks is None else response_masks[row].bool().to(response)
        mask[row, first : first + len(response)] = kept.long()
    if decoder:
        mask[:, 0] = 0
    return mask[:, 1:]


def token_sequences(
    queries: Sequence[Tensor], responses: Sequence[Tensor], response_masks: Sequence[Tensor] | None = None
) -> list[TokenSequence]:
    """Each query with its response, of which the tokens are scored that `response_mask` marks."""
    return [
        TokenSequence(
            query.tolist(),
            response.tolist(),
            [True] * len(response) if response_masks is None else response_masks[row].bool().tolist(),
        )
        for row, (query, response) in enumerate(zip(queries, responses, strict=True))
    ]


def scored(inputs: dict[str, Tensor], name: str) -> Tensor:
    """`input_ids` or `attention_mask` of the sequence whose tokens are scored: the decoder's, where there are two."""
    return inputs.get(f"decoder_{name}", inputs[name])


def rows(inputs: dict[str, Tensor], at: Any) -> dict[str, Tensor]:
    """Some rows of every tensor."""
    return {name: tensor[at] for name, tensor in inputs.items()}


def chunk(inputs: dict[str, Tensor], at: Any, trim: bool) -> tuple[dict[str, Tensor], slice]:
    """Some rows, with `trim` as `trimmed` leaves them; and which columns of a (B, T-1) tensor those are."""
    some = rows(inputs, at)
    return trimmed(some) if trim else (some, slice(None))


def trimmed(inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], slice]:
    """Without the columns that are padding in every row; and which columns of a (B, T-1) tensor are left."""
    kept: dict[str, Tensor] = {}
    left = slice(None)
    for part in ("", "decoder_"):
        if f"{part}attention_mask" in inputs:
            used = inputs[f"{part}attention_mask"].any(0).nonzero().flatten().tolist()
            tokens = slice(used[0], used[-1] + 1)
            left = slice(used[0], used[-1])  # the first token is predicted by nothing
            own = [name for name in inputs if name.startswith("decoder_") == bool(part)]
            kept |= {name: inputs[name][:, tokens] for name in own}
    return kept, left
