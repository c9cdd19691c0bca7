"""Whether a model, the tokenizer and the longest sequence fit together."""

from __future__ import annotations

from typing import Any

from dpo.lm.model_config import ModelError, position_limit, vocabulary_size


def check_fit(config: dict[str, Any], name: str, tokens: int, max_length: int) -> None:
    """Compare a model's `config.json` with what it will be given.

    Args:
        name: of the model, for the message.
        tokens: in the tokenizer's vocabulary.
        max_length: tokens of the longest sequence (data.max_length).

    Raises:
        ModelError: they do not fit.
    """
    size, limit = vocabulary_size(config), position_limit(config)
    if size is not None and tokens > size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens and the model of {name} knows {size}: ids from {size} "
            "up have no embedding. Use the tokenizer that the model was trained with (tokenizer.path)."
        )
    if limit is not None and max_length > limit:
        raise ModelError(
            f"data.max_length is {max_length} and the model of {name} has {limit} positions. "
            f"Set data.max_length to at most {limit}."
        )
