"""The model that training starts from, as a folder: given, or random and kept in the workspace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dpo.lm.weight_files import weights_digest
from pipeline.config import XTransformersPolicy
from pipeline.errors import ConfigError
from pipeline.place import Place
from pipeline.store.artifacts import begin, commit, find, fingerprint

FORMAT_VERSION = 1


class Weights(NamedTuple):
    """A model folder and the digest of its weights."""

    folder: Path
    digest: str
    baseline: float = 0.0  # of a trained policy: bco_pair's, after the last step


def given_policy(place: Place, folder: Path) -> Weights:
    """The policy that `policy.path` names, before any training of ours."""
    return Weights(folder, place.memo.digest(folder, "weights", weights_digest))


def random_config(policy: Any, vocabulary: int, max_length: int) -> dict[str, Any]:
    """The `config.json` of the model that a [policy] without a path describes.

    Args:
        vocabulary: tokens of the tokenizer.
        max_length: tokens of the longest sequence.
    """
    if not isinstance(policy, XTransformersPolicy):
        return policy.config or {}
    return {
        "model_type": "x-transformers",
        "num_tokens": vocabulary,
        "max_seq_len": policy.max_length or max_length,
        "dim": policy.dim,
        "depth": policy.depth,
        "heads": policy.heads,
        "positions": policy.positions,
        "decoder": policy.decoder,
        "wrapper": policy.wrapper,
    }


class Random(NamedTuple):
    """A random model in the workspace, made once for a config and a seed."""

    folder: Path
    made_of: dict[str, Any]

    @property
    def there(self) -> bool:
        return find(self.folder, self.made_of) is not None


def random_policy(place: Place, config: dict[str, Any]) -> Random:
    """Where the random model of a `config.json` is, or is to be made by `make_random`."""
    made_of = {"stage": "init", "format": FORMAT_VERSION, "config": config, "seed": place.config.run.seed}
    return Random(place.workspace / "models" / fingerprint(made_of), made_of)


def make_random(item: dict[str, Any]) -> Iterator[pa.Table]:
    """Make the random model of an item {"folder": ..., "made_of": its JSON}.

    Raises:
        ConfigError: no model can be built from that config.
    """
    from dpo.lm.models import random_model  # with torch and a library of models, which the driver does without
    from dpo.lm.weights import canonical_tensors, write_weights

    folder, made_of = Path(item["folder"]), json.loads(item["made_of"])
    config = made_of["config"]
    try:
        model = random_model(config, made_of["seed"])
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(f"[policy] no model can be built from {json.dumps(config)}: {error}") from None
    write_weights(begin(folder), canonical_tensors(model.network))
    model.write_config(folder)
    commit(folder, made_of, {"parameters": sum(p.numel() for p in model.parameters())})
    yield pa.table({"folder": [str(folder)]})


def copy_config(source: Path, target: Path) -> None:
    """What a model folder holds beside its weights and tokenizer."""
    for name in ("config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
