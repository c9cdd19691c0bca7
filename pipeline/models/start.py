"""The model that training starts from, as a folder: given, or random and kept in the workspace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.adapter_files import TENSORS, Worn, kind_of
from dpo.lm.model_config import read_config, with_older_keys
from dpo.lm.weight_files import weights_digest
from dpo.lm.whole_folder import file_digest, read_json
from pipeline.config import Config, HuggingFacePolicy, XTransformersPolicy
from pipeline.errors import ConfigError, RunError
from pipeline.models.adapted import Adapter, base_name, drawn, opened
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
    """A model folder and the digest of its weights, and what these are worn with."""

    folder: Path
    digest: str
    baseline: float = 0.0  # of a trained policy: bco_pair's, after the last step
    adapter: Adapter | None = None
    quantize: str = "none"
    device: str = "cpu"  # of the workers; quantized products need not be the same on another kind
    before: tuple[Path, str] | None = None  # folder and digest of the policy before [sft], where that trained it whole

    @property
    def worn(self) -> Worn:
        return Worn(str(self.adapter.folder) if self.adapter is not None else None, self.quantize)

    @property
    def mark(self) -> str:
        """A digest of all weights that decide a training."""
        if self.adapter is None and self.quantize == "none":
            return self.digest
        adapter = self.adapter.digest if self.adapter is not None else None
        return fingerprint({"weights": self.digest, "adapter": adapter, "quantize": self.quantize})

    @property
    def base(self) -> Weights:
        """The model of [policy] without its adapter, and before any training."""
        return Weights(*(self.before or (self.folder, self.digest)), quantize=self.quantize, device=self.device)


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

    def __init__(self, place: Place, given: Path | None, tokens: int, adapter: Path | None = None):
        """
        Args:
            given: the folder that `policy.path` names; None: a random model.
            tokens: of the tokenizer's vocabulary.
            adapter: the folder that `policy.adapter.path` names; None: a new one, if there is any.
        """
        config = place.config
        self.adapter = adapter
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
            AdapterError: [policy.adapter] does not fit the model.
        """
        assert self.folder is not None
        if self._making is not None:
            self._making.result()
            self._making = None
        digest, policy = digest_of_start(self.place, self.folder), self.place.config.policy
        if not isinstance(policy, HuggingFacePolicy) or policy.adapter is None:
            return Weights(self.folder, digest)
        if self.adapter is not None:
            adapter = opened(self.place, self.adapter, self.folder, digest, given=True)
        else:
            adapter = drawn(self.place, self.folder, digest)
        device = "cuda" if self.place.config.cluster.gpus_per_worker else "cpu"
        return Weights(self.folder, digest, adapter=adapter, quantize=policy.quantize, device=device)

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


def complete(written: Path, start: Weights, dtype: str) -> None:
    """Make a model folder of trained weights: they are compared with their start, whose config comes beside them.

    An adapter was written with its config, and is compared with the network by whoever puts it on.

    Args:
        dtype: of training.

    Raises:
        RunError: they have other names, shapes or types than their start.
    """
    if start.adapter is None:
        refuse_unlike(written, start.folder, dtype)
        copy_config(start.folder, written, dtype)


def trained_digest(written: Path) -> str:
    """The digest of trained weights: of a model's tensors, or of an adapter's file."""
    return file_digest(written / TENSORS) if kind_of(written) == "adapter" else weights_digest(written)


def trained_from(place: Place, start: Weights, written: Path, digest: str) -> Weights:
    """The result of training a start: a whole model of this digest, or another adapter on the same base."""
    if start.adapter is None:
        return Weights(written, digest, before=start.before or (start.folder, start.digest))
    return start._replace(adapter=opened(place, written, start.folder, start.digest))


def worn_by(place: Place, start: Weights) -> dict[str, Any]:
    """The fields of a job that say what its model wears."""
    if start.adapter is None:
        return {}
    return {
        "worn": start.worn,
        "base": (start.digest, base_name(place.config.policy)),
        "second_rate": second_rate(place.config),
    }


def second_rate(config: Config) -> float:
    """The learning rate of the second matrix of each pair, as a multiple of that of the first."""
    adapter = config.policy.adapter if isinstance(config.policy, HuggingFacePolicy) else None
    return 1.0 if adapter is None else adapter.lora_plus_ratio


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
