"""The model that training starts from, as a folder: given, or random and kept in the workspace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.model_config import read_config, with_older_keys
from dpo.lm.whole_folder import read_json
from pipeline.config import Config, XTransformersPolicy
from pipeline.errors import ConfigError, RunError
from pipeline.models.judged import digest_of_start, named, refuse_unlike
from pipeline.place import Place
from pipeline.process import Process
from pipeline.store.artifacts import begin, commit, fingerprint, take_up
from pipeline.store.hub import config_here

FORMAT_VERSION = 1
LARGE_VOCABULARY = 128_256  # tokens, as of Llama 3
BESIDE = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


class Weights(NamedTuple):
    """A model folder and the digest of its weights."""

    folder: Path
    digest: str
    baseline: float = 0.0  # of a trained policy: bco_pair's, after the last step


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


def config_ahead(config: Config) -> dict[str, Any] | None:
    """The `config.json` of the policy before tokenizer and model are opened; None where it is not here yet.

    For an x-transformers policy that has no vocabulary yet, a large one is assumed.
    """
    policy = config.policy
    if policy.path is None:
        return random_config(policy, LARGE_VOCABULARY, config.data.max_length)
    path = config_here(policy.path)
    return read_json(path) if path is not None else None


class InitialPolicy:
    """The policy as configured, before any training: a given folder, or a random model of the workspace.

    A random model is made once for a config and a seed, in a process beside the first stage.
    """

    def __init__(self, place: Place, given: Path | None, tokens: int):
        """
        Args:
            given: the folder that `policy.path` names; None: a random model.
            tokens: of the tokenizer's vocabulary.
        """
        config = place.config
        self.place = place
        self.folder, self._making = given, None
        if given is None:
            described = random_config(config.policy, tokens, config.data.max_length)
            made_of = {"stage": "init", "format": FORMAT_VERSION, "config": described, "seed": config.run.seed}
            self.folder = place.workspace / "models" / fingerprint(made_of)
            if take_up(self.folder, made_of, place.terminal.note) is None:
                self._making = Process(make_random, self.folder, made_of)

    @property
    def making(self) -> bool:
        """Whether the model is still being made."""
        return self._making is not None

    def weights(self) -> Weights:
        """Wait until the model is there.

        Raises:
            ConfigError: no model can be built from `policy.config`.
            WeightsError: the given folder holds no weights.
        """
        assert self.folder is not None
        if self._making is not None:
            self._making.result()
            self._making = None
        return Weights(self.folder, digest_of_start(self.place, self.folder))

    def __enter__(self) -> InitialPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        if self._making is not None:
            self._making.end()


def make_random(folder: Path, made_of: dict[str, Any]) -> None:
    """Make the random model of `made_of["config"]` with `made_of["seed"]`.

    Raises:
        ConfigError: no model can be built from that config.
        RunError: what was written is not what the library would write.
    """
    from dpo.lm.judge import unlike_start
    from dpo.lm.models import random_model  # with torch and a library of models, which the driver does without
    from dpo.lm.weights import canonical_tensors, write_weights

    config = made_of["config"]
    try:
        model = random_model(config, made_of["seed"])
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(f"[policy] no model can be built from {json.dumps(config)}: {error}") from None
    own = begin(folder)
    write_weights(own, model.on_disk(canonical_tensors(model.network)))
    model.write_config(own)
    found = unlike_start(own, own, "float32")
    if found:
        raise RunError(f"[policy] the random model is not as transformers would write it: {named(found)}")
    commit(own, folder, made_of, {"parameters": sum(p.numel() for p in model.parameters())})


def complete(written: Path, start: Path, dtype: str) -> None:
    """Make a model folder of trained weights: they are compared with their start, whose config comes beside them.

    Args:
        dtype: of training.

    Raises:
        RunError: they have other names, shapes or types than their start.
    """
    refuse_unlike(written, start, dtype)
    copy_config(start, written, dtype)


def copy_config(source: Path, target: Path, dtype: str) -> None:
    """Copy the files of a model folder that are neither weights nor tokenizer.

    Args:
        dtype: of the weights in `target`. Loaders cast weights to the type that the config names.
    """
    config = _of_dtype(with_older_keys(read_config(source)), dtype)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in BESIDE:  # how it generates, and how images and sounds are read
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def _of_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config that names this type wherever it names one."""
    named = {name: dtype for name in ("dtype", "torch_dtype") if isinstance(config.get(name), str)}
    inside = {name: _of_dtype(part, dtype) for name, part in config.items() if isinstance(part, dict)}
    return {**config, **inside, **named}
