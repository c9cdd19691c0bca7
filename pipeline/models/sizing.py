"""Memory and time of a job, counted from the shape of its model, its micro-batch and how ZeRO shards it.

The bytes of a layer's activations and of the training states are those that torch and DeepSpeed were seen to keep.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dpo.lm.head import chunk_rows
from dpo.lm.model_config import is_x_transformers

GIB = 2**30


class Shape(NamedTuple):
    """Sizes of a model whose layers are like those of Llama or GPT-2."""

    parameters: float
    body: float  # parameters in the layers
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    heads: int
    query: int  # channels of all heads' queries
    key_value: int  # channels of all heads' keys
    gated: bool = True  # SwiGLU and RMSNorm as in Llama; otherwise GELU and LayerNorm as in GPT-2


class MicroBatch(NamedTuple):
    """What a worker computes at once, in the layout where a prompt is stored once for its two completions."""

    tokens: float
    scored: float  # those of them that are completion tokens
    causal: float  # keys of the causal calls of attention: prompts with chosen sides
    masked: float  # keys of the masked calls: prompts with rejected sides
    mask: float  # entries of all masks

    @classmethod
    def of(cls, tokens: float, prompt: Any, chosen: Any, rejected: Any) -> MicroBatch:
        """Fill so many tokens with pairs of these lengths: numbers, or arrays with one entry per pair."""
        prompt, chosen, rejected = (np.asarray(side, float) for side in (prompt, chosen, rejected))
        counts = (chosen + rejected, prompt + chosen, prompt + rejected, rejected * (prompt + rejected))
        scale = tokens / (prompt + chosen + rejected).sum()
        return cls(tokens, *(float(scale * count.sum()) for count in counts))


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
    inner = round(8 / 3 * hidden)
    return Shape(parameters, 12 * layers * hidden**2, hidden, layers, inner, 128_256, hidden // 128, hidden, hidden)


def from_config(config: dict[str, Any]) -> Shape:
    """Return the shape of a model from its config.json: Llama-like, GPT-2-like or x-transformers.

    Raises:
        KeyError: the config has no field of that name.
    """
    if is_x_transformers(config):
        d, layers, heads, vocabulary = (config[name] for name in ("dim", "depth", "heads", "num_tokens"))
        gated = config["decoder"].get("ff_glu", False)
        query = key_value = heads * config["decoder"].get("attn_dim_head", 64)
        inner, tied = 4 * d, config["wrapper"].get("tie_embedding", False)
    else:
        d, layers = (_either(config, *names) for names in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")))
        heads, vocabulary = _either(config, "num_attention_heads", "n_head"), config["vocab_size"]
        gated = "intermediate_size" in config
        inner = config["intermediate_size"] if gated else config.get("n_inner") or 4 * d
        head = config.get("head_dim") or d // heads
        query, key_value = heads * head, config.get("num_key_value_heads", heads) * head
        tied = config.get("tie_word_embeddings", not gated)
    body = layers * (2 * d * query + 2 * d * key_value + (3 if gated else 2) * d * inner)
    parameters = body + vocabulary * d * (1 if tied else 2)
    return Shape(parameters, body, d, layers, inner, vocabulary, heads, query, key_value, gated)


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


def activation_bytes(shape: Shape, batch: MicroBatch, checkpointing: bool, float32: bool = False) -> float:
    """Return the memory of activations kept for the backward pass, in bytes.

    With checkpointing these are the input of each layer, and all activations of one layer.
    """
    layer = _layer_bytes(shape, batch, 4 if float32 else 2)
    if not checkpointing:
        return shape.layers * layer
    return shape.layers * batch.tokens * shape.hidden * (4 if float32 else 2) + layer


def _layer_bytes(shape: Shape, batch: MicroBatch, width: int) -> float:
    """Count what one layer keeps. `width`: bytes of a number."""
    if shape.gated:
        # An RMSNorm keeps its input in float32, 1/rms, the normalized input, and the product with its weight.
        norm = (4 + width + width) * shape.hidden + 4
        feed_forward = 4 * width * shape.intermediate  # gate, its SiLU, up, their product
    else:
        norm = 2 * width * shape.hidden + 2 * width  # input and output; mean and 1/deviation
        feed_forward = 5 * width * shape.intermediate  # of GELU's formula: input, tanh, two factors, their product
    # Of attention: queries, output, the output in the order of the next matrix, and a log-sum-exp of each head.
    attention = 3 * width * shape.query + 4 * shape.heads
    if not shape.gated:  # GPT-2 computes queries, keys and values in one product, which is kept whole
        attention += 2 * width * shape.key_value
    # Keys and values are copied for every call; beside a mask, grouped heads are repeated.
    copies = 2 * width * (shape.key_value * batch.causal + shape.query * batch.masked)
    return batch.tokens * (2 * norm + attention + feed_forward) + copies + width * batch.mask


def logits_bytes(shape: Shape, scored: float) -> float:
    """Return the memory of the output head, in bytes: float32 logits of one chunk, their gradient, and the weight's."""
    rows = min(scored, chunk_rows(shape.vocabulary))
    return rows * shape.vocabulary * 4 * 2.5 + 6 * shape.vocabulary * shape.hidden


def estimate(
    shape: Shape, stage: int, gpus: int, batch: MicroBatch, checkpointing: bool, float32: bool = False
) -> Memory:
    """Estimate the memory needed by one worker."""
    return Memory(
        states_bytes(shape.parameters, stage, gpus, float32),
        activation_bytes(shape, batch, checkpointing, float32),
        logits_bytes(shape, batch.scored),
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
