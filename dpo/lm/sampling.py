"""Next tokens from logits, and where a padded row begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Answering(nn.Module):
    """A model that continues prompts: in training by `continuations`, else by `generate`, which costs less."""

    def continuations(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int,
        pad_id: int,
        temperature: float = 0.0,
        agreed: Callable[[bool], bool] | None = None,
    ) -> list[list[int]]:
        """Continuations of the prompts, each up to and without its end token; greedy ones at a temperature of 0.

        They leave no inference tensors in weights and buffers.

        Args:
            agreed: whether all ranks say so; given where they hold the model together. They call this with as many
                prompts each, and go on until all are done.
        """
        raise NotImplementedError

    @torch.inference_mode()
    def generate(
        self, prompts: list[list[int]], max_new_tokens: int, eos_id: int, pad_id: int, temperature: float = 0.0
    ) -> list[list[int]]:
        """The same in inference mode, by a model that is not trained."""
        return self.continuations(prompts, max_new_tokens, eos_id, pad_id, temperature)


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults choose from the model's own distribution, which PPO's ratios rest on.

    Raises:
        ValueError: a setting that cannot be.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature} and has to be above 0; do_sample=False is greedy.")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k} and has to be 0 (no limit) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p} and has to be above 0 and at most 1 (no limit).")

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """[B, V] logits -> [B] tokens."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(int(self.top_k), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p < 1:
            ordered, tokens = logits.sort(dim=-1, descending=True)
            chances = ordered.softmax(dim=-1)
            # The token with which the sum passes top_p stays.
            beyond = (chances.cumsum(dim=-1) - chances) >= self.top_p
            logits = logits.masked_fill(beyond.gather(-1, tokens.argsort(dim=-1)), float("-inf"))
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


def left_padding(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """How many positions of padding each row begins with: (B,).

    Args:
        mask: (B, T), not 0 on real tokens.
        shape: what (B, T) should be.

    Raises:
        ValueError: another shape, a row without a real token, or padding between real tokens.
    """
    if tuple(mask.shape) != shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)} and the tokens {shape}. Give one entry each.")
    real = (mask != 0).int()
    # Two steps up, or one after a 1, are a hole.
    begins = torch.cat([real[:, :1], (real[:, 1:] - real[:, :-1]).clamp(min=0)], dim=1).sum(dim=1)
    if not (begins == 1).all():
        rows = (begins != 1).nonzero()[:, 0].tolist()
        raise ValueError(
            f"Rows {rows} of attention_mask are empty or have padding between real tokens. Padding has to be at the "
            "ends of a row, and each row needs a real token."
        )
    return real.argmax(dim=1)


def check_prompts(mask: Tensor, max_new_tokens: int, limit: int | None) -> None:
    """Raise ValueError where prompts cannot be continued: by that many tokens, or at all.

    Args:
        mask: (B, T), not 0 on real tokens.
        limit: the positions that the network has; None: no limit.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens} and has to be at least 1.")
    if not mask[:, -1].all():
        raise ValueError(
            f"Prompts {(mask[:, -1] == 0).nonzero()[:, 0].tolist()} end in padding, and their answers would stand "
            "behind it. Pad prompts on the left."
        )
    total = mask.shape[1] + max_new_tokens
    if limit is not None and total > limit:
        raise ValueError(
            f"Prompts of {mask.shape[1]} tokens and max_new_tokens = {max_new_tokens} make {total}, and the network "
            f"has positions for max_seq_len = {limit}. Ask for fewer tokens or shorten the prompts."
        )


def end_tokens(eos_token_id: int | Sequence[int] | None, pad_token_id: int | None) -> list[int]:
    """The tokens that end a row.

    Raises:
        ValueError: there are some, and nothing to fill the rest of a row with.
    """
    if eos_token_id is None:
        return []
    if pad_token_id is None:
        raise ValueError(
            f"eos_token_id is {eos_token_id} and pad_token_id is None, so nothing can fill the rows that end early. "
            "Give pad_token_id; it may be the end token itself."
        )
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
