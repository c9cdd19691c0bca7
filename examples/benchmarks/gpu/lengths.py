"""Pairs of random tokens with the lengths of real ones.

A set's lengths are kept as quantiles: those of public pairs of its kind in GPT-2's tokens (instructions, human pairs,
conversations of several turns), scaled to the mean lengths that are published of the set itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.benchmarks.workload import Pair, benchmark_tokenizer, read_pairs

LEVELS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
Quantiles = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of prompts and of completions, at LEVELS
SETS: dict[str, Quantiles] = {
    "UltraFeedback": (
        (24, 31, 36, 41, 48, 58, 68, 80, 97, 130, 278, 422, 780, 929),
        (4, 9, 20, 54, 112, 162, 212, 277, 367, 475, 586, 743, 1403, 1536),
    ),
    "HH": (
        (8, 24, 32, 46, 59, 74, 90, 111, 137, 177, 252, 337, 581, 1024),
        (2, 9, 12, 18, 24, 30, 38, 48, 61, 82, 121, 168, 310, 617),
    ),
    "Capybara": (
        (53, 64, 75, 115, 166, 217, 321, 469, 894, 1347, 1984, 2398, 3072, 3072),
        (13, 31, 60, 145, 262, 354, 447, 523, 592, 672, 779, 928, 1367, 1536),
    ),
}
MEANS = {"UltraFeedback": (121, 288), "HH": (127, 59), "Capybara": (712, 448)}  # published: prompt, completion
TINY = ((2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16), (1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12))


def mean(quantiles: tuple[int, ...]) -> float:
    """The mean of the distribution that is straight between its quantiles."""
    middles = (np.array(quantiles[1:]) + np.array(quantiles[:-1])) / 2
    return float(middles @ np.diff(LEVELS))


def quantiles_of(path: Path, tokenizer_folder: Path) -> Quantiles:
    """The lengths of a file of pairs."""
    pairs, _ = read_pairs(path, benchmark_tokenizer(tokenizer_folder), max_length=4096, seed=0)
    prompts = [len(pair.prompt) for pair in pairs]
    completions = [len(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    found = (np.quantile(lengths, LEVELS).round().astype(int).tolist() for lengths in (prompts, completions))
    prompt, completion = map(tuple, found)
    return prompt, completion


def draw(quantiles: Quantiles, pairs: int, seed: int) -> np.ndarray:
    """Draw the lengths of pairs: [pairs, 3], of prompt, chosen and rejected."""
    levels = np.random.default_rng(seed).random((3, pairs))
    prompt, completion = quantiles
    sides = (np.interp(level, LEVELS, of) for level, of in zip(levels, (prompt, completion, completion), strict=True))
    return np.stack([side.round().astype(np.int64) for side in sides], axis=1)


def pairs_of(lengths: np.ndarray, vocabulary: int, seed: int) -> list[Pair]:
    """Pairs of random tokens of these lengths; no two share a prompt."""
    ids = np.random.default_rng(seed)
    return [Pair(*(ids.integers(0, vocabulary, n).tolist() for n in pair)) for pair in lengths.tolist()]
