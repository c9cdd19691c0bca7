"""What a card should reach: useful FLOP over a share of its peak."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo.lm.flops import Work, forward_flops, shared_work, training_flops
from dpo.lm.model_config import Shape
from examples.benchmarks.gpu.lengths import MEANS
from examples.benchmarks.gpu.setting import MODELS
from examples.benchmarks.workload import Pair
from pipeline.models.cards import Card
from pipeline.models.sizing import MicroBatch, Zero, activation_bytes, states_bytes

TRAINING, SCORING, PRODUCTS = 0.4, 0.5, 0.6  # shares of the peak: a step, a forward pass, the products of the head
HEAD_MARGIN = 1.3  # of its products and the reading of its weights
BUDGET = 16384  # tokens of a micro-batch


def peak(card: Card) -> float:
    """FLOP/s in bfloat16."""
    return card.bfloat16_tflops * 1e12


def work_of(pairs: Sequence[Pair]) -> Work:
    """The useful work of pairs whose completions are scored whole."""
    sides = ([len(getattr(pair, side)) for pair in pairs] for side in ("prompt", "chosen", "rejected"))
    prompt, chosen, rejected = map(np.array, sides)
    return shared_work(prompt, (chosen, rejected))


def training_seconds(shape: Shape, work: Work, card: Card) -> float:
    return training_flops(shape, work) / (TRAINING * peak(card))


def scoring_seconds(shape: Shape, work: Work, card: Card) -> float:
    return forward_flops(shape, work) / (SCORING * peak(card))


def head_seconds(shape: Shape, scored: int, chunk_bytes: int, card: Card) -> float:
    """Forward and backward of the head: its four products, and its weight moved once a chunk.

    Forward reads the weight; backward reads it twice, writes and reads its gradient in bfloat16, and reads and writes
    the sum in float32.
    """
    rows = max(64, chunk_bytes // (4 * shape.vocabulary))
    numbers = shape.vocabulary * shape.hidden
    moved = -(-scored // rows) * numbers * (3 * 2 + 2 * 2 + 2 * 4)
    return moved / card.bandwidth + 8 * scored * numbers / (PRODUCTS * peak(card))


def show_table(card: Card) -> None:
    """Print the targets of every model and set on a card, from mean lengths; a larger model by its share of a group."""
    print(f"{card}: pairs/s in training at {TRAINING:.0%} of the peak, sequences/s in scoring at {SCORING:.0%}")
    print(f"{'':30}{'pairs/s':>9}{'tokens/s':>11}{'s a micro-batch':>17}{'sequences/s':>13}")
    for model, config in MODELS.items():
        shape = Shape.of(config)
        for data, (prompt, completion) in MEANS.items():
            work = shared_work(prompt, (completion, completion))
            rate = 1 / training_seconds(shape, work, card)
            logical, batch = rate * 2 * (prompt + completion), BUDGET / work.tokens / rate
            scored = 2 / scoring_seconds(shape, work, card)
            print(f"{model + ', ' + data:30}{rate:9.0f}{logical:11,.0f}{batch:17.2f}{scored:13,.0f}")
    for model, config in MODELS.items():
        shape = Shape.of(config)
        states = states_bytes(shape.parameters, Zero(1, 1))
        each = activation_bytes(shape, MicroBatch.of(1, *MEANS["UltraFeedback"], MEANS["UltraFeedback"][1]), False)
        print(f"{model}: {states / 1e9:.1f} GB of states on one card, {each / 1e3:.0f} kB of activations a token")
