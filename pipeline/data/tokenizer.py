"""[tokenizer] and [data] -> the tokenizer, and the rules by which pairs become token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.text.tokenize import Rules
from dpo.text.tokenizers import load_tokenizer
from pipeline.config import Config, XTransformersPolicy
from pipeline.errors import ConfigError
from pipeline.store.hub import model_folder


def open_tokenizer(config: Config) -> Any:
    """Load the tokenizer that a configuration names, or else its policy's own.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    settings, policy = config.tokenizer, config.policy
    path = settings.path
    if path is None:
        path = "bytes" if isinstance(policy, XTransformersPolicy) else policy.path
    if path is None:
        raise ConfigError(
            'tokenizer.path is missing: a policy made from policy.config has none. "bytes" needs no files.'
        )
    local = path if path == "bytes" or Path(path).exists() else str(model_folder(path, "tokenizer.path"))
    return load_tokenizer(local, settings.eos_token, settings.chat_template)


def rules(config: Config) -> Rules:
    """How pairs become token ids."""
    data = config.data
    return Rules(
        data.max_length,
        data.truncation,
        data.max_prompt_length,
        data.max_completion_length,
        config.tokenizer.template_options,
    )


def pad_id(tokenizer: Any) -> int:
    """The id to pad with. Any will do: what stands on the right of a sequence is never seen."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
