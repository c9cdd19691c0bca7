"""Whether a job fits, and how fast it may run: memory of a GPU and pairs a second, before one is rented.

    python -m examples.benchmarks.size --parameters 8e9 --gpus 8 --stage 2 --gpu-memory 80
    python -m examples.benchmarks.size --model path/to/config.json --gpus 1 --prompt 124 --completion 47

An estimate from the formulas of ZeRO (arXiv:1910.02054) and of a transformer's activations; a fifth more should stay
free. bfloat16 weights and gradients, float32 Adam states and gradient sums.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo.lm.model_config import read_config
from pipeline.models.sizing import GIB, MicroBatch, estimate, from_config, from_parameters, pairs_per_second


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
    shape = (
        from_parameters(options.parameters) if options.model is None else from_config(read_config(options.model.parent))
    )
    batch = MicroBatch.of(options.tokens, options.prompt, options.completion, options.completion)
    print(f"{shape.parameters / 1e9:.2f} B parameters: hidden {shape.hidden}, {shape.layers} layers")
    print("stage  checkpointing  states  activations  logits   total GiB  fits  pairs/s (all GPUs)")
    for stage in [options.stage] if options.stage is not None else [0, 1, 2, 3]:
        for checkpointing in (False, True):
            memory = estimate(shape, stage, options.gpus, batch, checkpointing)
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
