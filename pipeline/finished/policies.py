"""A finished run -> the model that it started from, and the model that it exported."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dpo.lm.adapter_files import ALONE, Worn, kind_of
from dpo.text.plain import PlainTokenizer
from pipeline.data.tokenizer import open_tokenizer
from pipeline.errors import InputError
from pipeline.models.asked import given_adapter
from pipeline.models.start import InitialPolicy, Weights, trained_from
from pipeline.place import Place
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST
from pipeline.store.hub import model_folder
from pipeline.store.records import read_manifest

# Whose manifests say what the run started from.
KNOW_THE_START = (run_files.WEIGHTS, run_files.EVALUATION)


class Policy(NamedTuple):
    """A model's folder, and the adapter and quantization that it is loaded with."""

    folder: Path
    worn: Worn


def after_training(place: Place, tokens: int) -> Policy:
    """The exported model; an exported adapter is put on the run's own base.

    Args:
        tokens: of the tokenizer's vocabulary.
    """
    export = place.run_dir / run_files.EXPORT
    if kind_of(export) != "adapter":
        return Policy(export, ALONE)
    start = start_of(place, tokens)
    return Policy(start.folder, Worn(str(export), start.quantize))


def before_training(place: Place, tokens: int) -> Policy:
    """The model that preference training started from, with its adapter."""
    start = start_of(place, tokens)
    return Policy(start.folder, start.worn)


def start_of(place: Place, tokens: int) -> Weights:
    """The start of preference training, which is looked for as a run does it.

    Raises:
        InputError: what is there now is not what the run started from.
    """
    policy = place.config.policy
    folder = model_folder(policy.path, "policy.path") if policy.path is not None else None
    with InitialPolicy(place, folder, tokens, given_adapter(place, folder)) as made:
        initial = made.weights()
    marks = {_start_in(place.run_dir / name) for name in KNOW_THE_START} - {None}
    found = [initial] if not place.config.sft.epochs else _warmed_up(place, initial)
    start = next((weights for weights in found if weights.mark in marks or (weights is initial and not marks)), None)
    if start is None:
        where = place.workspace / "sft" if place.config.sft.epochs else initial.folder
        raise InputError(
            f"the model that the run in {place.run_dir} started from is not in {where} any more: it was changed or "
            "removed since. --show after needs only the exported model, if that is not an adapter"
        )
    return start


def _start_in(folder: Path) -> str | None:
    manifest = read_manifest(folder / MANIFEST)
    return None if manifest is None else manifest.made_of.get("start")


def _warmed_up(place: Place, initial: Weights) -> list[Weights]:
    """The policies that [sft] made of this one, in any run of the workspace."""
    found = []
    for path in sorted((place.workspace / "sft").glob(f"*/{MANIFEST}")):
        manifest = read_manifest(path)
        if manifest is not None and manifest.made_of.get("start") == initial.mark:
            model = path.parent / run_files.MODEL
            found.append(trained_from(place, initial, model, manifest.counts["weights"]))
    return found


def tokenizer_of(place: Place) -> PlainTokenizer:
    """The tokenizer that was exported; beside an adapter, which has none of its own, that of the configuration."""
    export, config = place.run_dir / run_files.EXPORT, place.config
    if (export / "tokenizer_config.json").exists():
        exported = {"path": str(export), "eos_token": None, "chat_template": None}
        config = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update=exported)})
    return open_tokenizer(config)
