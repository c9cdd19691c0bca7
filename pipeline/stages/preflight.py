"""Before the first stage: what would only fail after hours, found within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dpo.lm.adapter_files import TENSORS, kind_of
from dpo.lm.model_config import read_config
from dpo.lm.weight_files import shard_files
from dpo.text.plain import PlainTokenizer
from pipeline.cluster.connect import joined, refuse_missing_gpus
from pipeline.config import HuggingFacePolicy
from pipeline.data.sources import DataFile, data_files
from pipeline.data.tokenizer import open_tokenizer
from pipeline.models.asked import given_adapter, given_reference
from pipeline.models.fits import check_fit
from pipeline.models.judged import refuse_untrainable
from pipeline.models.start import random_config
from pipeline.place import Place
from pipeline.store.hub import model_folder


class Inputs(NamedTuple):
    """The inputs of a run, each looked at once."""

    files: list[DataFile]  # of data.train and data.eval
    tokenizer: PlainTokenizer
    policy: Path | None  # the folder of policy.path; None: a random model
    adapter: Path | None = None  # the folder of policy.adapter.path
    reference: Path | None = None  # the folder of reference.model, where it names one

    @property
    def paths(self) -> list[str]:
        """The files that every node must read: of data, and of weights where they are given."""
        models = [path for path in (self.policy, self.adapter, self.reference) if path is not None]
        weights = [file for folder in models for file in _weights_in(folder)]
        return [file.path for file in self.files] + [str(path) for path in weights]


def _weights_in(folder: Path) -> list[Path]:
    return [folder / TENSORS] if kind_of(folder) == "adapter" else shard_files(folder)


def preflight(place: Place) -> Inputs:
    """Look at files, model, tokenizer and GPUs.

    Raises:
        InputError: one of them is missing, or they do not fit together.
    """
    config, policy = place.config, place.config.policy
    files = data_files(config.data, place.workspace, place.run_dir)
    folder = model_folder(policy.path, "policy.path") if policy.path is not None else None
    if folder is not None:
        refuse_untrainable(place, folder)  # first: a tokenizer beside a damaged config.json cannot be opened either
    tokenizer = open_tokenizer(config)
    if folder is not None:
        check_fit(read_config(folder), str(folder), len(tokenizer), config.data.max_length)
    elif isinstance(policy, HuggingFacePolicy):
        check_fit(policy.config or {}, "policy.config", len(tokenizer), config.data.max_length)
    adapter = given_adapter(place, folder)
    reference = given_reference(place, folder, len(tokenizer))
    if joined(config) is None:
        refuse_missing_gpus(config, place.until)
    return Inputs(files, tokenizer, folder, adapter, reference)


def warn_of_memory(place: Place, inputs: Inputs) -> None:
    """Print a line if training will hardly fit this machine's GPU, where it is known and trains."""
    config = place.config
    if joined(config) is not None or not config.cluster.gpus_per_worker:
        return
    from pipeline.models.cards import local_card
    from pipeline.models.room import shortage  # which loads torch, as a run on CPUs does not

    card = local_card()
    if card is None:
        return
    if inputs.policy is not None:
        model = read_config(inputs.policy)
    else:
        model = random_config(config.policy, len(inputs.tokenizer), config.data.max_length)
    said = shortage(config, model, card)
    if said is not None:
        place.terminal.note(said)
