"""The identity of a model: the key under which the cache keeps its log-probs. Imports no torch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from dpo.lm.model_config import is_x_transformers, read_config
from pipeline.models.start import Weights
from pipeline.store.artifacts import fingerprint

# Raised where the same model and sequence would give other log-probs. In float32 nothing has changed yet, so old caches
# are found.
ROUNDS_NO_LOGITS = 2  # logits of bfloat16 weights are computed in float32
ROUNDS_NO_POSITIONS = 3  # so are the rotary positions of x-transformers

# Entries of a model's config.json that do not change what it computes.
NOT_FORWARD = {
    "_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of the libraries that compute log-probs; they are noted beside the identity, and no part of it."""
    return {name: version(name) for name in ("torch", "transformers", "x-transformers")}


def identity_of(model: Weights, dtype: str) -> tuple[str, dict[str, Any]]:
    """The identity, and what it is made of: the weights, the config of the forward pass, the dtype, the scorer.

    Where a model has them, also its adapter and how its weights are quantized.
    """
    config = {k: v for k, v in read_config(model.folder).items() if k not in NOT_FORWARD and "drop" not in k}
    meaning = {"weights": model.digest, "config": config, "dtype": dtype, "scorer": _scorer_version(config, dtype)}
    if model.adapter is not None and not model.adapter.neutral:  # one that changes nothing is none
        meaning["adapter"] = model.adapter.digest
    if model.quantize != "none":
        meaning["quantization"] = {
            "kind": model.quantize,
            "device": model.device,
            "bitsandbytes": version("bitsandbytes"),
        }
    return fingerprint(meaning), meaning


def _scorer_version(config: dict[str, Any], dtype: str) -> int:
    if dtype == "float32":
        return 1
    return ROUNDS_NO_POSITIONS if is_x_transformers(config) else ROUNDS_NO_LOGITS
