"""Estimates of a job's memory and time, from the formulas of ZeRO (arXiv:1910.02054) and of a transformer.

Assumes bfloat16 weights and gradients, and float32 Adam states and gradient sums. Keep 20 % more memory free.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dpo.lm.head import chunk_rows
from dpo.lm.model_config import is_x_transformers

GIB = 2**30


class Shape(NamedTuple):
    """Sizes of a Llama-like model."""

    parameters: float
    body: float  # parameters in the layers
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int


class Memory(NamedTuple):
    """Bytes on one GPU."""

    states: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(self)


def from_parameters(parameters: float) -> Shape:
    """Return a usual shape of that size: layers of 12 d^2 parameters, depth growing with width, 128,256 tokens."""
    layers = max(8, round(2.9 * (parameters / 1e9) ** 0.33 * 5.5))
    hidden = round((parameters / (12 * layers)) ** 0.5 / 128) * 128
    return Shape(parameters, 12 * layers * hidden**2, hidden, layers, round(8 / 3 * hidden), 128_256)


def from_config(config: dict[str, Any]) -> Shape:
    """Return the shape of a model from its config.json: Llama-like, GPT-2-like or x-transformers.

    Raises:
        KeyError: the config has no field of that name.
    """
    if is_x_transformers(config):
        d, layers, vocabulary = config["dim"], config["depth"], config["num_tokens"]
        gated = config["decoder"].get("ff_glu", False)
        inner, key_value, tied = 4 * d, d, config["wrapper"].get("tie_embedding", False)
    else:
        d, layers = (_either(config, *names) for names in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")))
        heads, vocabulary = _either(config, "num_attention_heads", "n_head"), config["vocab_size"]
        gated = "intermediate_size" in config
        inner = config["intermediate_size"] if gated else config.get("n_inner") or 4 * d
        key_value, tied = (
            d * config.get("num_key_value_heads", heads) // heads,
            config.get("tie_word_embeddings", False),
        )
    body = layers * (2 * d * d + 2 * d * key_value + (3 if gated else 2) * d * inner)
    return Shape(body + vocabulary * d * (1 if tied else 2), body, d, layers, inner, vocabulary)


def _either(config: dict[str, Any], name: str, other: str) -> int:
    return config[name] if name in config else config[other]


def states_bytes(parameters: float, stage: int, gpus: int, float32: bool = False) -> float:
    """Return the memory of weights, gradients and Adam's states on one GPU, in bytes.

    Bytes per parameter in bfloat16: weights and gradients 2 each, gradient sums 4, Adam's moments and master weights
    12. In float32: weights, gradients and gradient sums 4 each, Adam's moments 8.
    """
    if float32:
        sharded = {0: (0, 20), 1: (12, 8), 2: (16, 4), 3: (20, 0)}[stage]
    else:
        sharded = {0: (0, 20), 1: (16, 4), 2: (18, 2), 3: (20, 0)}[stage]
    return parameters * (sharded[0] / gpus + sharded[1])


def activation_bytes(shape: Shape, tokens: int, checkpointing: bool) -> float:
    """Return the memory of bfloat16 activations kept for the backward pass, in bytes.

    With checkpointing these are the input of each layer, and all activations of one layer.
    """
    layer = 2 * (8 * shape.hidden + 3 * shape.intermediate + 2 * shape.hidden)
    kept = shape.layers * 2 * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * kept


def logits_bytes(shape: Shape, scored: int) -> float:
    """Return the memory of the output head, in bytes: float32 logits of one chunk, their gradient, and the weight's."""
    rows = min(scored, chunk_rows(shape.vocabulary, "cuda"))
    return rows * shape.vocabulary * 4 * 2.5 + 6 * shape.vocabulary * shape.hidden


def estimate(
    shape: Shape, stage: int, gpus: int, tokens: int, scored: int, checkpointing: bool, float32: bool = False
) -> Memory:
    """Estimate the memory needed by one worker.

    Args:
        tokens: tokens of a micro-batch.
        scored: those of them that are completion tokens.
    """
    return Memory(
        states_bytes(shape.parameters, stage, gpus, float32),
        activation_bytes(shape, tokens, checkpointing) * (2 if float32 else 1),
        logits_bytes(shape, scored),
    )


def forward_flops(shape: Shape, prompt: float, completion: float) -> float:
    """Return the FLOP of a pair's forward pass, with its prompt computed once and the head only on scored tokens.

    Args:
        prompt: mean length of a prompt, in tokens.
        completion: mean length of a completion, in tokens.
    """
    tokens = prompt + 2 * completion
    forward = 2 * shape.body * tokens + 2 * shape.vocabulary * shape.hidden * 2 * completion
    return forward + 2 * shape.hidden * shape.layers * (2 * (prompt + completion) ** 2 - prompt**2)


def pairs_per_second(
    shape: Shape, prompt: float, completion: float, gpus: int, peak_tflops: float, share: float, checkpointing: bool
) -> float:
    """Estimate the pairs per second in training.

    Args:
        peak_tflops: peak speed of one GPU, in TFLOP/s.
        share: share of the peak speed that training reaches.
    """
    forward = forward_flops(shape, prompt, completion)
    return gpus * peak_tflops * 1e12 * share / (forward * (4 if checkpointing else 3))
