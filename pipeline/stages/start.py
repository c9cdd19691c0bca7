"""The model that training starts from, as a folder: given, or random and kept in the workspace; and the preflight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dpo.lm.hf import HuggingFaceModel
from dpo.lm.model_config import read_config
from dpo.lm.weight_files import shard_files, weights_digest
from dpo.lm.weights import canonical_tensors, write_weights
from dpo.lm.x_transformers import XTransformersModel
from pipeline.config import HuggingFacePolicy, XTransformersPolicy
from pipeline.errors import ConfigError
from pipeline.hub import model_folder
from pipeline.place import Place
from pipeline.sources import data_files
from pipeline.stages.cluster import joined, refuse_missing_gpus
from pipeline.store.artifacts import begin, commit, find, fingerprint

FORMAT = 1


class Start(NamedTuple):
    """A model folder and the digest of its weights."""

    folder: Path
    digest: str
    baseline: float = 0.0  # of a trained policy: bco_pair's, after the last step


def preflight(place: Place) -> None:
    """Find out within seconds what would only fail after hours: files, model, tokenizer, GPUs.

    Raises:
        InputError: something does not fit.
    """
    config, policy = place.config, place.config.policy
    data_files(place)
    if policy.path is not None:
        folder = model_folder(policy.path, "policy.path")
        place.check_model(read_config(folder), str(folder))
        shard_files(folder)
    elif isinstance(policy, HuggingFacePolicy):
        place.check_model(policy.config or {}, "policy.config")
    if joined(config) is None:
        refuse_missing_gpus(config, torch.cuda.device_count())


def model_files(place: Place) -> list[Path]:
    """The weights that every node must read; none where the policy is a random one.

    Raises:
        InputError: there are none.
    """
    path = place.config.policy.path
    return shard_files(model_folder(path, "policy.path")) if path is not None else []


def initial_policy(place: Place) -> Start:
    """The policy as configured, before any training of ours.

    Raises:
        InputError: no model can be had from that.
    """
    policy = place.config.policy
    if policy.path is not None:
        folder = model_folder(policy.path, "policy.path")
    elif isinstance(policy, HuggingFacePolicy):
        folder = _random(place, policy.config or {}, HuggingFaceModel)
    else:
        folder = _random(place, x_transformers_config(place, policy), XTransformersModel)
    return Start(folder, place.memo.digest(folder, "weights", weights_digest))


def x_transformers_config(place: Place, policy: XTransformersPolicy) -> dict[str, Any]:
    """The `config.json` of the model that a [policy] without a path describes."""
    return {
        "model_type": "x-transformers",
        "num_tokens": len(place.tokenizer),
        "max_seq_len": policy.max_length or place.config.data.max_length,
        "dim": policy.dim,
        "depth": policy.depth,
        "heads": policy.heads,
        "positions": policy.positions,
        "decoder": policy.decoder,
        "wrapper": policy.wrapper,
    }


def _random(place: Place, config: dict[str, Any], kind: type[HuggingFaceModel] | type[XTransformersModel]) -> Path:
    """A random model in the workspace, made once for a config and seed."""
    made_of = {"stage": "init", "format": FORMAT, "config": config, "seed": place.config.run.seed}
    folder = place.workspace / "models" / fingerprint(made_of)
    if find(folder, made_of) is None:
        try:
            model = kind.random(config, place.config.run.seed)
        except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            raise ConfigError(f"[policy] no model can be built from {json.dumps(config)}: {error}") from None
        write_weights(begin(folder), canonical_tensors(model.network))
        model.write_config(folder)
        commit(folder, made_of, {"parameters": sum(p.numel() for p in model.parameters())})
    return folder
