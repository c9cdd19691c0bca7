"""A model -> the fastest way to its log-probs, tried against its own forward pass of one sequence at a time.

The numbers are compared in float32, whatever the model's dtype: the rounding of 16 bits would hide what is looked for.
Some short sequences are asked, and one beyond the length at which the model's window or rotary positions change, where
that is small enough to try. A smaller length cannot stand for it: the model's own one is part of what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpo.lm.head import target_logps
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.model_config import ModelError, position_limit
from dpo.lm.products import is_narrow
from dpo.lm.sequences import TokenSequence
from dpo.lm.wide import Gathered, fits, in_float32, no_gathering

OWN, HEAD_APART, SHARED = Way(shared=False, scored_only=False), Way(shared=False), Way()
MORE_THAN_HEAD = "something changes the logits behind the head"
NOT_THE_SAME = "the model's log-probs change if prompts are shared, or its attention does not allow it"
LONGEST = 256  # tokens; a window or switch above this is not tried
BEYOND = 8  # tokens behind it that are
LEAST = -1e3  # nats; a model that can never say a token gives it less
# Entries of a config with a length at which what a token sees changes.
TURNS = (
    "sliding_window", "attention_chunk_size", "attention_window_size", "window_size", "local_attention",
    "original_max_position_embeddings",
)  # fmt: skip
LOOKS_AHEAD = (
    "lets a token see those behind it, as an encoder does, so its log-probs are not those of a language model. If it "
    "was trained to write text, its config.json should say so (is_decoder or causal is true)."
)


class Trial(NamedTuple):
    """The outcome of a trial: the reason against a way, or None where its numbers are right."""

    shared: str | None
    head_apart: str | None  # prompts are repeated, and the head is called on scored positions only


class Chosen(NamedTuple):
    """The fastest way that gives the right numbers, and the reason why it does not share prompts if it does not."""

    way: Way
    unshared: str | None


@torch.no_grad()
def try_ways(
    model: LogprobModel,
    config: dict[str, Any],
    vocabulary: int,
    may_share: bool,
    device: torch.device,
    agreed: Callable[[bool], bool] = bool,
    gathered: Gathered = no_gathering,
) -> Trial:
    """Compare the ways of a model with its own forward pass of each sequence alone.

    Where a GPU has no memory for float32 copies, the numbers are compared in the model's own dtype, and coarsely.

    Args:
        config: the `config.json` of the model.
        may_share: whether it allows sharing prompts; if not, that is not tried.
        agreed: with several ranks, a collective that returns whether all ranks say yes.
        gathered: with partitioned weights, a collective that makes some of them whole.

    Raises:
        ModelError: a sequence's log-probs depend on what stands behind it or beside it, so that no way is right.
    """
    network = model.model.network
    wide = agreed(fits(network, device))
    narrow = is_narrow(next(network.parameters()).dtype) and not wide
    sequences = trial_sequences(vocabulary, tokens_beyond(config))
    with in_float32(network, gathered, convert=wide):
        expected = _truth_or_refused(model, sequences, device)
        refuse_look_ahead(model, sequences[0], vocabulary, device)
        own, apart, *shared = (
            _agreed(agreed, why_not(model, way, sequences, device, expected, narrow))
            for way in (OWN, HEAD_APART, *([SHARED] if may_share else []))
        )
    if own is not None:
        raise ModelError(
            f"{type(network).__name__} cannot be trained: a batch does not give the log-probs of each of its sequences "
            f"alone; {own}."
        )
    return Trial(shared[0] if shared else None, apart)


@torch.no_grad()
def fastest_way(
    model: LogprobModel,
    trial: Trial,
    vocabulary: int,
    may_share: bool,
    device: torch.device,
    agreed: Callable[[bool], bool] = bool,
) -> Chosen:
    """Choose the fastest way that passed the trial and that this device can take, in the model's own dtype.

    Args:
        may_share: whether the model's config allows sharing prompts.

    Raises:
        ModelError: the model's own forward pass fails.
    """
    sequences = trial_sequences(vocabulary)
    narrow = is_narrow(next(model.parameters()).dtype)
    unshared = None
    try:
        expected = ask(model, OWN, sequences, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the model's code in the library
        raise _unable(model, error) from error
    for way, reason in (*([(SHARED, trial.shared)] if may_share else []), (HEAD_APART, trial.head_apart)):
        if not model.model.plain_head:
            reason = MORE_THAN_HEAD
        reason = reason or _agreed(agreed, why_not(model, way, sequences, device, expected, narrow))
        if reason is None:
            return Chosen(way, unshared)
        unshared = reason if way.shared else unshared
    return Chosen(OWN, unshared)


def truth(model: LogprobModel, sequences: list[TokenSequence], device: torch.device) -> Tensor:
    """Compute the log-probs [S] of all completions by the model's own forward pass, one sequence at a time."""
    found = []
    for prompt, completion, _ in sequences:
        ids = torch.tensor([*prompt, *completion], device=device)
        found.append(_logps(model, ids)[len(prompt) - 1 :])
    return torch.cat(found)


def refuse_look_ahead(model: LogprobModel, sequence: TokenSequence, vocabulary: int, device: torch.device) -> None:
    """Change the last token of a sequence, and leave it out: nothing before it may move.

    Raises:
        ModelError: something did.
    """
    ids = torch.tensor([*sequence.prompt_ids, *sequence.completion_ids], device=device)
    changed = ids.clone()
    changed[-1] = (changed[-1] + 1) % vocabulary
    plain, *others = (model.model(asked[None])[0, : len(ids) - 1].float() for asked in (ids, changed, ids[:-1]))
    known = plain > LEAST
    if max((plain - other)[known].abs().max() for other in others) > 1e-4 * plain[known].abs().max():
        raise ModelError(f"{type(model.model.network).__name__} {LOOKS_AHEAD}")


def why_not(
    model: LogprobModel,
    way: Way,
    sequences: list[TokenSequence],
    device: torch.device,
    expected: Tensor,
    narrow: bool,
) -> str | None:
    """The reason against a way, if its log-probs are not the expected ones or it cannot be computed at all."""
    try:
        found = ask(model, way, sequences, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the model's code in the library, of its attention, of shapes that do not fit
        return f"a trial ended in {_in_words(error)}"
    known = expected > LEAST
    if close(found[known], expected[known], narrow):
        return None
    return f"in a trial its log-probs changed by {float((found - expected)[known].abs().max()):.2g} nats"


def close(found: Tensor, expected: Tensor, narrow: bool) -> bool:
    """Whether two ways gave the same numbers, up to what their order of sums explains; `narrow`: in 16 bits."""
    return bool((found - expected).abs().max() <= (0.1 if narrow else 1e-4) * expected.abs().mean())


def ask(model: LogprobModel, way: Way, sequences: list[TokenSequence], device: torch.device) -> Tensor:
    """The log-probs [S] of one batch, computed in a way."""
    before, model.way = model.way, way
    try:
        return model(model.collate(sequences, 0).to(device)).logps.float()
    finally:
        model.way = before


def trial_sequences(vocabulary: int, longest: int | None = None) -> list[TokenSequence]:
    """Make test sequences: three completions of one prompt with a common beginning, two of a second, one of a third.

    Args:
        longest: tokens of one more completion of the first prompt, with the prompt.
    """
    draw = np.random.default_rng(0).integers(0, vocabulary, 64 + LONGEST).tolist()
    first, second, third = draw[:9], draw[9:13], draw[13:16]
    start = draw[16:18]
    pairs = [
        (first, start + draw[18:23]), (first, start + draw[23:26]), (second, draw[26:32]),
        (second, draw[32:35]), (third, draw[35:39]), (first, start + draw[39:43]),
    ]  # fmt: skip
    if longest is not None:
        pairs.append((first, draw[43 : 43 + longest - len(first)]))
    return [TokenSequence(prompt, completion, [True] * len(completion)) for prompt, completion in pairs]


def tokens_beyond(config: dict[str, Any]) -> int | None:
    """Return a length beyond the window or the switch of a config's rotary positions; None if there is none to try."""
    found = [n + BEYOND for n in _entries(config, TURNS) if isinstance(n, int) and 0 < n <= LONGEST]
    limit = position_limit(config)
    if limit is not None:
        found = [min(n, limit) for n in found]
        if "dynamic" in _entries(config, ("rope_type", "type")) and limit <= LONGEST:
            found.append(limit + BEYOND)
    return max(found, default=None)


def _entries(config: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """The values that a config has under some names, at any depth."""

    def values(part: dict[str, Any]) -> Iterator[Any]:
        for name, value in part.items():
            if name in names:
                yield value
            elif isinstance(value, dict):
                yield from values(value)

    return list(values(config))


def _logps(model: LogprobModel, ids: Tensor) -> Tensor:
    """The log-probs [T - 1] of all tokens of one sequence [T] but the first."""
    return target_logps(model.model(ids[None])[0, :-1], ids[1:]).logps.float()


def _truth_or_refused(model: LogprobModel, sequences: list[TokenSequence], device: torch.device) -> Tensor:
    try:
        expected = truth(model, sequences, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the model's code in the library
        raise _unable(model, error) from error
    if not (expected > LEAST).any():
        raise ModelError(
            f"The log-probs of {type(model.model.network).__name__} are not finite numbers. Its weights are damaged: "
            "load the model elsewhere, or copy it again."
        )
    return expected


def _unable(model: LogprobModel, error: Exception) -> ModelError:
    """The error to raise where a model's own forward pass raised one."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    other = ' It may be that it can with train.dtype = "float32".' if dtype != "float32" else ""
    return ModelError(
        f"{type(model.model.network).__name__} cannot compute a batch of tokens in {dtype} here: {_in_words(error)}."
        f"{other}"
    )


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0].rstrip('.')}"


def _agreed(agreed: Callable[[bool], bool], reason: str | None) -> str | None:
    """A reason on every rank, if one rank has one."""
    return None if agreed(reason is None) else reason or "another worker found other numbers"
