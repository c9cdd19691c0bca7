"""Where a run stands: its configuration, folders, tokenizer, clock, and what it says to the terminal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo.lm.model_config import ModelError, position_limit, read_config, vocabulary_size
from dpo.lm.models import why_unshared
from dpo.text.tokenize import Rules
from dpo.text.tokenizers import load_tokenizer
from pipeline.config import Config, XTransformersPolicy
from pipeline.errors import ConfigError, InputError
from pipeline.hub import model_folder
from pipeline.progress import Terminal
from pipeline.sources import DataFile
from pipeline.store.artifacts import Memo, read_json, write_atomically
from pipeline.store.cache import Cache
from pipeline.worker import deepspeed_config

# A run's name stands for one training. These keys may change between two runs of a name: they move where the work is
# done, how often it is saved and what is shown of it, not what is trained.
FREE = {
    "run": {"dir", "workspace", "audit"},
    "reference": {
        "cache",
        "actors",
        "cpus_per_actor",
        "gpus_per_actor",
        "resources",
        "labels",
        "batch_sequences",
        "batch_tokens",
        "guard_tolerance",
    },
    "sft": {"micro_batch_tokens"},
    "train": {
        "checkpoint_minutes",
        "checkpoint_steps",
        "keep_checkpoints",
        "max_failures",
        "share_prompts",
        "activation_checkpointing",
        "micro_batch_tokens",
    },
    "cluster": {"address", "workers", "cpus_per_worker", "gpus_per_worker", "resources", "labels"},
    "evaluate": {"every_steps", "generate_prompts", "max_new_tokens"},
    "report": {"tensorboard", "show_answers", "ray_logs"},
}


class Place:
    """A run's surroundings, passed to every stage."""

    def __init__(self, config: Config):
        self.config = config
        self.run_dir = Path(config.run.dir).resolve() / config.run.name
        self.workspace = Path(config.run.workspace).resolve()
        self.terminal = Terminal()
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, Any] = {}
        self.peak_rss = 0
        self.files: list[DataFile] | None = None  # what data.train and data.eval name, once they were looked at
        self._claimed = False  # whether this process was the first to take the run's name

    @cached_property
    def memo(self) -> Memo:
        return Memo(self.workspace / "digests.json")

    @property
    def cache_root(self) -> str:
        """Where the log-probs of all references are kept."""
        return self.config.reference.cache or str(self.workspace / "cache")

    def cache(self, identity: str) -> Cache:
        """The log-probs of one reference."""
        return Cache(f"{self.cache_root}/{identity}")

    @cached_property
    def tokenizer(self) -> Any:
        config, policy = self.config.tokenizer, self.config.policy
        path = config.path
        if path is None:
            path = "bytes" if isinstance(policy, XTransformersPolicy) else policy.path
        if path is None:
            raise ConfigError(
                'tokenizer.path is missing: a policy made from policy.config has none. "bytes" needs no files.'
            )
        local = path if path == "bytes" or Path(path).exists() else str(model_folder(path, "tokenizer.path"))
        return load_tokenizer(local, config.eos_token, config.chat_template)

    @property
    def rules(self) -> Rules:
        """How pairs become token ids."""
        data = self.config.data
        return Rules(
            data.max_length,
            data.truncation,
            data.max_prompt_length,
            data.max_completion_length,
            self.config.tokenizer.template_options,
        )

    @cached_property
    def pad_id(self) -> int:
        """Any id will do: what stands on the right of a sequence is never seen."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id

    def sharing(self, model: Path) -> str | None:
        """What speaks against computing a prompt once for its completions; None: nothing."""
        if not self.config.train.share_prompts:
            return "train.share_prompts = false"
        return why_unshared(read_config(model))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and announce it."""
        began = time.monotonic()
        self.terminal.begin(name)
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)
        self.terminal.end(name, self.seconds[name])

    def open(self) -> None:
        """Make the folders and claim the run's name.

        Raises:
            InputError: a folder cannot be written, the name belongs to another training, or deepspeed.config holds
                what cannot be used (only training reads it, hours later).
        """
        deepspeed_config.build(self.config.train, self.config.deepspeed)
        for key, folder in (("run.dir", self.run_dir), ("run.workspace", self.workspace)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".writable.{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise InputError(f"{key}: cannot write to {folder}: {error.strerror}. Name another folder.") from None
        path, ours = self.run_dir / "config.json", json.loads(self.config.model_dump_json())
        theirs = read_json(path)
        self._claimed = theirs is None
        if theirs is not None:
            differing = [f"{key} (was {old!r}, is {new!r})" for key, old, new in _differences(theirs, ours)]
            if differing:
                raise InputError(
                    f"run.name = {self.config.run.name!r} belongs to a run with other settings: "
                    f"{', '.join(differing)}. Choose another run.name; tokens and reference "
                    "log-probs are reused all the same."
                )
        write_atomically(path, json.dumps(ours, indent=2) + "\n")

    def release(self) -> None:
        """Give the run's name back, if `open` has just claimed it and nothing was made under it that depends on more.

        What was refused may then be mended, in the settings too, under the same name.
        """
        if self._claimed and not (self.run_dir / "epochs").exists():
            (self.run_dir / "config.json").unlink(missing_ok=True)

    def check_model(self, config: dict[str, Any], name: str) -> None:
        """Whether a model's config, the tokenizer and data.max_length fit together.

        Raises:
            InputError: they do not.
        """
        size, limit = vocabulary_size(config), position_limit(config)
        if size is not None and len(self.tokenizer) > size:
            raise ModelError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model of {name} knows {size}: ids from {size} "
                "up have no embedding. Use the tokenizer that the model was trained with (tokenizer.path)."
            )
        if limit is not None and self.config.data.max_length > limit:
            raise ModelError(
                f"data.max_length is {self.config.data.max_length} and the model of {name} has {limit} positions. "
                f"Set data.max_length to at most {limit}."
            )


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section in sorted(theirs.keys() | ours.keys()):
        old, new = theirs.get(section) or {}, ours.get(section) or {}
        for key in sorted(old.keys() | new.keys()):
            if key not in FREE.get(section, ()) and old.get(key) != new.get(key):
                yield f"{section}.{key}", old.get(key), new.get(key)
