"""The contents that a run's name stands for: its data, tokenizer and weights, by digest, in `inputs.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.lm.adapter_files import CONFIG, TENSORS, kind_of
from dpo.lm.whole_folder import file_digest
from pipeline.claim import WAY_OUT, has_made
from pipeline.data.sources import file_digest_of
from pipeline.data.tokenizer import tokenizer_contents
from pipeline.errors import InputError
from pipeline.models.judged import digest_of_start
from pipeline.place import Place
from pipeline.stages.preflight import Inputs
from pipeline.stages.prepare import made_of_tokens
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST, fingerprint
from pipeline.store.records import read_manifest, read_record, write_record


def same_contents(place: Place, inputs: Inputs) -> None:
    """Write down the contents of a run that begins; compare them with those of one that goes on.

    Raises:
        InputError: something was made of other contents under this name.
    """
    path, ours = place.run_dir / run_files.INPUTS, _contents(place, inputs)
    theirs = read_record(path) if has_made(place.run_dir) else None
    if theirs is not None:
        changed = list(_changed(theirs, ours))
    else:
        changed = [] if _same_tokens(place, inputs) else ["data, tokenizer, or how this version reads them"]
    if changed:
        raise InputError(
            f"run.name = {place.config.run.name!r} stands for other contents; changed since it began: "
            f"{', '.join(changed)}. {WAY_OUT}"
        )
    if theirs != ours:
        write_record(path, ours)


def _contents(place: Place, inputs: Inputs) -> dict[str, Any]:
    """Digests by key of the configuration, as plain values."""
    memo, deepspeed = place.memo, place.config.deepspeed.config
    policy = digest_of_start(place, inputs.policy) if inputs.policy is not None else None
    beside = {"adapter": inputs.adapter, "reference": inputs.reference}
    return {
        **{key: {"sha256": _digest(place, folder)} for key, folder in beside.items() if folder is not None},
        "data": [
            {
                "file": file.path,
                "sha256": file_digest_of(memo, file),
                "split": file.split,
                "columns": file.columns,
            }
            for file in inputs.files
        ],
        "tokenizer": {"sha256": fingerprint({"contents": tokenizer_contents(place.config)})},
        "policy": {"sha256": policy},
        "deepspeed": {"sha256": file_digest(Path(deepspeed)) if deepspeed is not None else None},
    }


def _digest(place: Place, folder: Path) -> str:
    """The digest of a model's weights, or of the files of an adapter."""
    if kind_of(folder) != "adapter":
        return digest_of_start(place, folder)
    return fingerprint({name: place.memo.digest(folder / name) for name in (CONFIG, TENSORS)})


def _changed(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    """Name what differs."""
    then, now = theirs["data"], ours["data"]
    if [_nameless(entry) for entry in then] != [_nameless(entry) for entry in now]:
        known = [_nameless(entry) for entry in then]
        other = [entry["file"] for entry in now if _nameless(entry) not in known]
        yield f"data ({other[0] if other else 'files are missing, or in another order'})"
    keys = {
        "tokenizer": "tokenizer",
        "policy": "weights (policy.path)",
        "adapter": "adapter (policy.adapter.path)",
        "reference": "reference (reference.model)",
        "deepspeed": "deepspeed.config",
    }
    for key, said in keys.items():
        old, new = theirs.get(key), ours.get(key)
        if old != new:
            yield f"{said}{_digests(old, new)}" if key in ("policy", "adapter", "reference") else said


def _digests(old: Any, new: Any) -> str:
    """The digests of weights before and now, as far as there are any."""
    shown = [str(entry["sha256"])[:12] if entry is not None else "none" for entry in (old, new)]
    return f", digest {shown[0]} before and {shown[1]} now"


def _nameless(entry: dict[str, Any]) -> dict[str, Any]:
    """A file without its name: it may have been moved."""
    return {key: value for key, value in entry.items() if key != "file"}


def _same_tokens(place: Place, inputs: Inputs) -> bool:
    """Whether a run of an older version, which has written down no contents, was made of the tokens of today."""
    epochs = read_manifest(place.run_dir / run_files.EPOCHS / MANIFEST)
    return epochs is None or epochs.made_of.get("tokens") == fingerprint(made_of_tokens(place, inputs))
