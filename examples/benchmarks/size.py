"""Whether a job fits, and how fast it may run: memory of a GPU and pairs a second, before one is rented.

    python -m examples.benchmarks.size --parameters 8e9 --gpus 8 --stage 2 --gpu-memory 80
    python -m examples.benchmarks.size --model path/to/config.json --gpus 1 --prompt 124 --completion 47

An estimate from the formulas of ZeRO (arXiv:1910.02054) and of a transformer's activations; a fifth more should stay
free. bfloat16 weights and gradients, float32 Adam states and gradient sums.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from dpo.head import chunk_rows

GIB = 2**30


class Shape(NamedTuple):
    """Of a Llama-like model."""

    parameters: float
    body: float  # of them, in the layers
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
    """A usual shape of that size: layers of 12 d^2, a depth that grows with the width, 128,256 tokens."""
    layers = max(8, round(2.9 * (parameters / 1e9) ** 0.33 * 5.5))
    hidden = round((parameters / (12 * layers)) ** 0.5 / 128) * 128
    return Shape(parameters, 12 * layers * hidden**2, hidden, layers, round(8 / 3 * hidden), 128_256)


def from_config(path: Path) -> Shape:
    config = json.loads(path.read_text())
    d, layers, inner, vocabulary = (
        config[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    heads = config["num_attention_heads"]
    key_value = d * config.get("num_key_value_heads", heads) // heads
    body = layers * (2 * d * d + 2 * d * key_value + 3 * d * inner)
    tied = config.get("tie_word_embeddings", False)
    return Shape(body + vocabulary * d * (1 if tied else 2), body, d, layers, inner, vocabulary)


def states_bytes(parameters: float, stage: int, gpus: int) -> float:
    """Weights and gradients (2 bytes each), gradient sums (4), Adam's moments and master weights (12)."""
    sharded = {0: (0, 20), 1: (16, 4), 2: (18, 2), 3: (20, 0)}[stage]
    return parameters * (sharded[0] / gpus + sharded[1])


def activation_bytes(shape: Shape, tokens: int, checkpointing: bool) -> float:
    """bfloat16: what the layers keep for the backward pass; with checkpointing each layer's input, and one layer."""
    layer = 2 * (8 * shape.hidden + 3 * shape.intermediate + 2 * shape.hidden)
    kept = shape.layers * 2 * shape.hidden + layer if checkpointing else shape.layers * layer
    return tokens * kept


def logits_bytes(shape: Shape, scored: int) -> float:
    """Float32 logits of one chunk with their gradient, and the sum of the head's gradient; the rest is done again."""
    rows = min(scored, chunk_rows(shape.vocabulary))
    return rows * shape.vocabulary * 4 * 2.5 + 6 * shape.vocabulary * shape.hidden


def estimate(shape: Shape, stage: int, gpus: int, tokens: int, scored: int, checkpointing: bool) -> Memory:
    return Memory(
        states_bytes(shape.parameters, stage, gpus),
        activation_bytes(shape, tokens, checkpointing),
        logits_bytes(shape, scored),
    )


def pairs_per_second(
    shape: Shape, prompt: float, completion: float, gpus: int, peak_tflops: float, share: float, checkpointing: bool
) -> float:
    """From the FLOPs of a pair with its prompt once and the head on scored tokens."""
    tokens = prompt + 2 * completion
    forward = 2 * shape.body * tokens + 2 * shape.vocabulary * shape.hidden * 2 * completion
    forward += 2 * shape.hidden * shape.layers * (2 * (prompt + completion) ** 2 - prompt**2)
    return gpus * peak_tflops * 1e12 * share / (forward * (4 if checkpointing else 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--parameters", type=float, help="such as 8e9")
    model.add_argument("--model", type=Path, help="a config.json of a Llama-like model")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GiB")
    parser.add_argument("--stage", type=int, choices=[0, 1, 2, 3], help="ZeRO; all of them without")
    parser.add_argument("--tokens", type=int, default=8192, help="train.micro_batch_tokens")
    parser.add_argument("--prompt", type=float, default=256.0, help="mean tokens")
    parser.add_argument("--completion", type=float, default=256.0, help="mean tokens")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU in bfloat16")
    parser.add_argument("--share", type=float, default=0.4, help="of that peak which is reached (MFU)")
    options = parser.parse_args()
    shape = from_parameters(options.parameters) if options.model is None else from_config(options.model)
    scored = round(options.tokens * 2 * options.completion / (options.prompt + 2 * options.completion))
    print(f"{shape.parameters / 1e9:.2f} B parameters: hidden {shape.hidden}, {shape.layers} layers")
    print("stage  checkpointing  states  activations  logits   total GiB  fits  pairs/s (all GPUs)")
    for stage in [options.stage] if options.stage is not None else [0, 1, 2, 3]:
        for checkpointing in (False, True):
            memory = estimate(shape, stage, options.gpus, options.tokens, scored, checkpointing)
            rate = pairs_per_second(
                shape,
                options.prompt,
                options.completion,
                options.gpus,
                options.peak_tflops,
                options.share,
                checkpointing,
            )
            parts = "  ".join(f"{part / GIB:9.1f}" for part in (*memory, memory.total))
            fits = "yes" if memory.total < 0.8 * options.gpu_memory * GIB else "no"
            print(f"{stage:5}  {'on' if checkpointing else 'off':13}  {parts}  {fits:4}  {rate:8.1f}")


if __name__ == "__main__":
    main()
