"""Whether a job fits, and how fast it may run: memory of a GPU and pairs a second, before one is rented.

    python -m examples.benchmarks.size --parameters 8e9 --gpus 8 --stage 2 --card A100-80GB
    python -m examples.benchmarks.size --model path/to/config.json --gpus 1 --prompt 124 --completion 47

An estimate of what torch and DeepSpeed keep in bfloat16, with DeepSpeed's default buffers. It fits if it takes at most
85 % of the card's memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dpo.lm.model_config import ModelError, Shape, read_config
from pipeline.models.cards import CARDS
from pipeline.models.room import FULL
from pipeline.models.sizing import (
    GIB,
    Memory,
    MicroBatch,
    Zero,
    estimate,
    from_parameters,
    pairs_per_second,
)


def positive(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def whole(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def share(text: str) -> float:
    if positive(text) > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1")
    return float(text)


def read_shape(parser: argparse.ArgumentParser, path: Path) -> Shape:
    """Read the sizes of a model from its folder or its config.json; end the program where they cannot be read."""
    try:
        return Shape.of(read_config(path if path.is_dir() else path.parent))
    except ModelError as error:
        parser.error(f"--model {path}: {error}. A model of the hub must be downloaded first.")
    except KeyError as error:
        parser.error(f"--model {path}: its config.json has no field {error}, as a Llama-like decoder has")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--parameters", type=positive, help="such as 8e9")
    model.add_argument("--model", type=Path, help="folder of a Llama-like model, or its config.json")
    parser.add_argument("--gpus", type=whole, default=1, help="in all (1)")
    parser.add_argument("--card", choices=CARDS, default="H100", help="model of GPU; the default is an H100")
    parser.add_argument("--stage", type=int, choices=[1, 2, 3], help="of ZeRO; all three if left out")
    parser.add_argument("--tokens", type=whole, default=8192, help="train.micro_batch_tokens (8192)")
    parser.add_argument("--prompt", type=positive, default=256.0, help="mean tokens of a prompt (256)")
    parser.add_argument("--completion", type=positive, default=256.0, help="mean tokens of a completion (256)")
    parser.add_argument(
        "--share", type=share, default=0.4, help="of the card's peak that is reached, from 0 to 1 (0.4)"
    )
    options = parser.parse_args()
    card = CARDS[options.card]
    shape = from_parameters(options.parameters) if options.model is None else read_shape(parser, options.model)
    batch = MicroBatch.of(options.tokens, options.prompt, options.completion, options.completion)
    print(f"{shape.parameters / 1e9:.2f} B parameters: hidden {shape.hidden}, {shape.layers} layers")
    names = "".join(f"{name:>13}" for name in (*Memory._fields, "total GiB"))
    print(f"stage  checkpointing{names}  fits  pairs/s (all GPUs)")
    for stage in [options.stage] if options.stage is not None else [1, 2, 3]:
        zero = Zero(stage, options.gpus, overlap=stage == 3)
        for checkpointing in (False, True):
            memory = estimate(shape, zero, batch, checkpointing)
            lengths = options.prompt, options.completion
            rate = pairs_per_second(shape, *lengths, options.gpus, card.bfloat16_tflops, options.share, checkpointing)
            parts = "".join(f"{part / GIB:13.1f}" for part in (*memory, memory.total))
            fits = "yes" if memory.total <= FULL * card.memory else "no"
            print(f"{stage:5}  {'on' if checkpointing else 'off':13}{parts}  {fits:4}  {rate:8.1f}")


if __name__ == "__main__":
    main()
