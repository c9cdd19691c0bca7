"""Random prompts with several completions each: what the shared layout is for."""

from __future__ import annotations

import random

from dpo.lm.sequences import TokenSequence


def random_sequences(seed: int, vocabulary: int, shortest_prompt: int = 1) -> list[TokenSequence]:
    """At most 14 tokens each. Prompts return, completions begin alike, are equal or one goes on where another ends.

    With few words in the vocabulary different prompts also begin alike. Every sequence has a token, and one at least is
    scored somewhere.
    """
    rng = random.Random(seed)

    def words(shortest: int, longest: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(shortest, longest))]

    sequences: list[TokenSequence] = []
    for _ in range(rng.randint(1, 3)):
        prompt, start = words(shortest_prompt, 6), words(0, 3)
        completion = start + words(1, 5)
        for _ in range(rng.randint(1, 4)):
            mask = [rng.random() < 0.8 for _ in completion]
            sequences.append(TokenSequence(prompt, completion, mask))
            fresh = start + words(1, 5)
            completion = rng.choice([fresh, fresh, completion, completion[: rng.randint(1, len(completion))]])
    first = sequences[0]
    sequences[0] = first._replace(mask=[*first.mask[:-1], True], prompt_ids=first.prompt_ids or [0])
    rng.shuffle(sequences)
    return sequences
