"""The makers of what an actor of the pool holds. Torch is imported where the model is, not where one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

Answer = Callable[[pa.Table], pa.Table]


def scorer(**options: Any) -> Answer:
    """Sequences -> their log-probs in the cache; the options are those of `Scorer`."""
    from pipeline.models.scorer import Scorer

    return Scorer(**options)


def verifier(**options: Any) -> Answer:
    """Sequences that are cached -> how far fresh log-probs are from the cached ones."""
    from pipeline.models.scorer import Verifier

    return Verifier(**options)


def answerer(**options: Any) -> Answer:
    """Prompts -> greedy answers; the options are those of `Answerer`."""
    from pipeline.models.answerer import Answerer

    return Answerer(**options)
