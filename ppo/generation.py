"""Responses to queries of different lengths, and what about the way they are sampled makes PPO's data off-policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dpo.lm.sequences import up_to_end
from ppo.inputs import padded


class LengthSampler:
    """A length at random, at least `min_value` and below `max_value`; from a generator of its own.

    Raises:
        ValueError: there is no such length.
    """

    def __init__(self, min_value: int, max_value: int, seed: int = 0):
        if not 0 < min_value < max_value:
            raise ValueError(f"min_value = {min_value} must be above 0 and below max_value = {max_value}")
        self.min_value, self.max_value = min_value, max_value
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> int:
        return int(torch.randint(self.min_value, self.max_value, (), generator=self.generator))


def merged(options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a call of `generate`, and below them what its `generation_config` says, as transformers has it."""
    given = options.get("generation_config")
    if given is None:
        return options
    said = {name: value for name, value in given.to_dict().items() if value is not None and name[0] != "_"}
    said.pop("transformers_version", None)
    return said | {name: value for name, value in options.items() if name != "generation_config"}


def end_ids(model: Any, tokenizer: Any, options: dict[str, Any]) -> list[int]:
    """The tokens that end a response: as told (see `merged`), as the model's own config says, or the tokenizer's."""
    config = getattr(model.pretrained_model, "generation_config", None)
    for ids in (options.get("eos_token_id"), getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        if ids is not None:
            return list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]
    return []


def respond(
    model: Any,
    queries: Sequence[Tensor],
    batch_size: int,
    pad_id: int,
    ends: list[int],
    length_sampler: Callable[[], int] | None = None,
    return_prompt: bool = True,
    width: int | None = None,
    pad_to_multiple_of: int | None = None,
    **options: Any,
) -> list[Tensor]:
    """A response to each query, (length,) each, up to and with its first end token; the query in front if asked for.

    Only what was generated is searched for the end token: a query may hold one, and the start token of an
    encoder-decoder may be one. The start token stays in front of an encoder-decoder's response.

    Raises:
        ValueError: a query that is longer than `width`, the fixed length asked for.
    """
    found: list[Tensor] = []
    side = "right" if model.is_encoder_decoder else "left"
    for start in range(0, len(queries), batch_size):
        chunk = list(queries[start : start + batch_size])
        if length_sampler is not None:
            options["max_new_tokens"] = length_sampler()
        multiple = pad_to_multiple_of or 1
        inputs = padded(chunk, pad_id, side, width or -(-max(map(len, chunk)) // multiple) * multiple, "query")
        filler = {} if "pad_token_id" in merged(options) else {"pad_token_id": pad_id}
        out = model.generate(**inputs, **filler, **_taken(model, options))
        prompt = 1 if model.is_encoder_decoder else inputs["input_ids"].shape[1]
        for query, row in zip(chunk, out, strict=True):
            answer = row[prompt : prompt + len(up_to_end(row[prompt:].tolist(), ends))]
            if model.is_encoder_decoder:
                answer = torch.cat([row[:1], answer])
            elif return_prompt:
                answer = torch.cat([query.to(answer), answer])
            found.append(answer)
    return found


def _taken(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """For networks of x-transformers, without those keywords of transformers' generate that ask for nothing."""
    if hasattr(model.pretrained_model, "generation_config"):
        return options
    idle = {name: values for name, values in HARMLESS.items() if name != "top_p"} | {"min_length": (-1, 0)}
    return {k: v for k, v in options.items() if not (k in idle and v in idle[k])}


# What a sampler may do to a distribution, with the value that leaves it alone.
HARMLESS = {
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "top_h": (),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
    "exponential_decay_length_penalty": (),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "prefix_allowed_tokens_fn": (),
    "logits_processor": ([],),
}


WHOLE = SimpleNamespace(do_sample=True, top_k=0, top_p=1.0, temperature=1.0)


def off_policy(model: Any, options: dict[str, Any], temperature: float) -> list[str]:
    """Name the settings that make the policy that samples another one than the policy that is scored; a phrase each.

    `options` as `merged` gives them.

    Log-probs are taken from the model's own distribution at `temperature`. Samples of another one make the estimate of
    the KL biased, even negative, and the ratios wrong.
    """
    # A network of x-transformers has no such configuration: its generate samples from the whole distribution.
    config = getattr(model.pretrained_model, "generation_config", WHOLE)

    def applies(name: str) -> Any:
        value = options.get(name)
        return getattr(config, name, None) if value is None else value

    if not applies("do_sample"):
        return ["do_sample = False"]
    found = [f"{name} = {applies(name)}" for name, values in HARMLESS.items() if applies(name) not in (None, *values)]
    top_k = applies("top_k")
    if top_k is None or top_k > 0:
        found.append(
            f"top_k = {50 if top_k is None else top_k}" + (" (the library's default)" if top_k is None else "")
        )
    sampled_at = 1.0 if applies("temperature") is None else applies("temperature")
    if sampled_at != temperature:
        found.append(f"temperature = {sampled_at}")
    for name in ("min_length", "min_new_tokens"):
        if (applies(name) or 0) > 0:
            found.append(f"{name} = {applies(name)}")
    return found
