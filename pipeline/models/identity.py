"""The identity of a model: the key under which the cache keeps its log-probs. Imports no torch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from dpo.lm.model_config import read_config
from pipeline.models.start import Weights
from pipeline.store.artifacts import fingerprint

# By dtype; raised when the same model and sequence would give other log-probs. Logits of bfloat16 weights came to be
# computed in float32 and not rounded, which is version 2; in float32 nothing changed, so those old caches are found.
SCORER_VERSION = {"float32": 1, "bfloat16": 2}

# Entries of a model's config.json that do not change what it computes.
NOT_FORWARD = {
    "_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of the libraries that compute log-probs; they are noted beside the identity, and no part of it."""
    return {name: version(name) for name in ("torch", "transformers", "x-transformers")}


def identity_of(model: Weights, dtype: str) -> tuple[str, dict[str, Any]]:
    """The identity, and what it is made of: the weights, the config of the forward pass, the dtype, the scorer."""
    config = {k: v for k, v in read_config(model.folder).items() if k not in NOT_FORWARD and "drop" not in k}
    meaning = {"weights": model.digest, "config": config, "dtype": dtype, "scorer": SCORER_VERSION[dtype]}
    return fingerprint(meaning), meaning
