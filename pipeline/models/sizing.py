"""Memory and time of a job, counted from the shape of its model, its micro-batch and how ZeRO shards it.

The bytes of a layer's activations and of the training states are those that torch and DeepSpeed were seen to keep.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dpo.lm.flops import forward_flops, shared_work, training_flops
from dpo.lm.head import chunk_rows
from dpo.lm.model_config import Shape

GIB = 2**30
# Bytes of a quantized weight: half of one and a float32 for each block of 64; one and a float32 for each row.
QUANTIZED = {"nf4": 0.5625, "int8": 1.001}
GPU_PROGRAM = 1e9  # bytes of the CUDA context and of the workspaces of its libraries
CPU_PROGRAM = 0.7e9  # bytes of a worker with a tiny model: torch, Ray and DeepSpeed


class MicroBatch(NamedTuple):
    """The tokens that a worker computes at once, in the layout where a prompt is stored once for two completions."""

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


class Zero(NamedTuple):
    """How DeepSpeed shards the training states over workers, and the sizes of its buffers, in numbers."""

    stage: int
    workers: int
    float32: bool = False
    optimizer_on_cpu: bool = False
    weights_on_cpu: bool = False
    bucket: int = 500_000_000  # DeepSpeed's defaults
    overlap: bool = False
    live: int = 1_000_000_000  # gathered weights at stage 3

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 4 if self.float32 else 2

    @classmethod
    def of(cls, settings: dict[str, Any], workers: int) -> Zero:
        """Read the settings that DeepSpeed gets."""
        zero = settings["zero_optimization"]
        return cls(
            zero["stage"],
            workers,
            not settings["bf16"]["enabled"],
            "offload_optimizer" in zero,
            "offload_param" in zero,
            int(zero.get("reduce_bucket_size", cls._field_defaults["bucket"])),
            bool(zero.get("overlap_comm", zero["stage"] == 3)),
            int(zero.get("stage3_max_live_parameters", cls._field_defaults["live"])),
        )


class Frozen(NamedTuple):
    """A base under an adapter."""

    trained: float  # parameters of the adapter, and of modules that are trained whole
    kind: str = "none"  # how the frozen weights are quantized
    head: bool = False  # whether the head is trained whole

    def bytes(self, shape: Shape, zero: Zero) -> float:
        """Bytes of the frozen weights on a worker; stage 3 shares them out. Embedding and head are never quantized."""
        body = shape.body * QUANTIZED.get(self.kind, zero.width)
        return (body + (shape.parameters - shape.body) * zero.width) / (zero.workers if zero.stage == 3 else 1)


class Memory(NamedTuple):
    """Bytes on one GPU, or of one worker on a CPU."""

    states: float
    buffers: float
    activations: float
    logits: float
    program: float

    @property
    def total(self) -> float:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {part / GIB:.1f}" for name, part in self._asdict().items())
        return f"{self.total / GIB:.1f} GiB: {parts}"


def from_parameters(parameters: float) -> Shape:
    """Return a usual shape of that size: layers of 12 d^2 parameters, depth growing with width, 128,256 tokens."""
    layers = max(8, round(2.9 * (parameters / 1e9) ** 0.33 * 5.5))
    hidden = round((parameters / (12 * layers)) ** 0.5 / 128) * 128
    inner = round(8 / 3 * hidden)
    return Shape(parameters, 12 * layers * hidden**2, hidden, layers, inner, 128_256, hidden // 128, hidden, hidden)


# Bytes of a parameter that each worker holds at a stage, and those that the workers share, before an optimizer step.
# In bfloat16: weights 2, gradient sums 4, master weights 4, Adam's moments 8, and at stage 1 gradients 2. In float32:
# weights, gradient sums, Adam's moments, and the part of the weights that is updated 4 more; at stage 0 without it.
BFLOAT16_STATES = {1: (8, 12), 2: (2, 16), 3: (0, 18)}
FLOAT32_STATES = {0: (16, 0), 1: (8, 12), 2: (4, 16), 3: (0, 20)}


def states_bytes(parameters: float, zero: Zero) -> float:
    """Return the memory of weights, gradients and Adam's states on one GPU, in bytes.

    Offloaded, the shared part is in the CPU's memory, but for the weights at stage 3.
    """
    whole, shared = (FLOAT32_STATES if zero.float32 else BFLOAT16_STATES)[zero.stage]
    if zero.optimizer_on_cpu:
        shared = zero.width if zero.stage == 3 else 0
    if zero.weights_on_cpu:
        shared -= zero.width
    return parameters * (whole + shared / zero.workers)


def buffers_bytes(parameters: float, zero: Zero) -> float:
    """Return the memory of DeepSpeed's buffers during a backward pass, in bytes.

    Buckets of gradients are allocated whole, and copied in float32 to be sent. At stage 1 in bfloat16 gradients are
    sent from where they are summed. At stage 3 shards are cut from another copy, and layers in use have whole weights.
    """
    filled, number = min(zero.bucket, parameters), 1 + zero.overlap
    if zero.stage == 0:
        return 4 * filled
    if zero.stage == 3:
        weights = zero.width * min(zero.live, parameters)
        return weights + 4 * zero.bucket + 4 * filled * (1 + 1 / zero.workers)
    if zero.stage == 1 and not zero.float32 and not zero.optimizer_on_cpu:
        return 0
    return number * (zero.width * zero.bucket + 4 * filled)


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


def logits_bytes(shape: Shape, scored: float, gpu: bool, trained: bool = True) -> float:
    """Return the memory of the output head, in bytes: float32 logits of one chunk, their gradient, and the weight's.

    A chunk takes at most half of what is free on a GPU, so the smallest one decides whether a run fits.

    Args:
        trained: whether the head's weight has a gradient.
    """
    rows = min(scored, chunk_rows(shape.vocabulary, "cuda", 0) if gpu else chunk_rows(shape.vocabulary, "cpu"))
    return rows * shape.vocabulary * 4 * 2.5 + (6 * shape.vocabulary * shape.hidden if trained else 0)


def estimate(
    shape: Shape, zero: Zero, batch: MicroBatch, checkpointing: bool, gpu: bool = True, frozen: Frozen | None = None
) -> Memory:
    """Estimate the memory needed by one worker.

    Args:
        gpu: on a GPU; otherwise all of it is the memory of a CPU.
        frozen: the base under an adapter, which alone has gradients and Adam's states; None: all weights are trained.
    """
    if not gpu:  # there everything is offloaded, and what is allocated but never filled takes no memory
        zero = zero._replace(
            optimizer_on_cpu=False, weights_on_cpu=False, bucket=min(zero.bucket, int(shape.parameters))
        )
    trained = shape.parameters if frozen is None else frozen.trained
    gathered = 0.0
    if frozen is not None and zero.stage == 3:
        gathered = zero.width * (min(zero.live, shape.parameters) - min(zero.live, trained))
    return Memory(
        states_bytes(trained, zero) + (frozen.bytes(shape, zero) if frozen is not None else 0),
        buffers_bytes(trained, zero) + gathered,
        activation_bytes(shape, batch, checkpointing, zero.float32),
        logits_bytes(shape, batch.scored, gpu, frozen is None or frozen.head),
        GPU_PROGRAM if gpu else CPU_PROGRAM,
    )


def pairs_per_second(
    shape: Shape, prompt: float, completion: float, gpus: int, peak_tflops: float, share: float, checkpointing: bool
) -> float:
    """Estimate the pairs per second in training.

    Args:
        prompt: mean length of a prompt, in tokens.
        completion: mean length of a completion, in tokens.
        peak_tflops: peak speed of one GPU, in TFLOP/s.
        share: share of the peak speed that training reaches.
    """
    work = shared_work(prompt, (completion, completion))
    again = forward_flops(shape, work) if checkpointing else 0
    return gpus * peak_tflops * 1e12 * share / (training_flops(shape, work) + again)
