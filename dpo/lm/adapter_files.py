"""Adapter folders, as peft writes them: what a folder is, and whether its adapter can be put on a model.

Imports neither torch nor peft.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpo.lm.model_config import ModelError
from dpo.lm.weight_files import INDEX, WHOLE, Header, tensor_headers, tensor_headers_of
from dpo.lm.whole_folder import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in an adapter's file
HEADS = ("lm_head", "embed_out")  # names of output heads among transformers' models
# Keys of adapter_config.json that this program understands.
READ = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias",
    "trainable_token_indices", "target_parameters", "init_lora_weights", "bias",
}  # fmt: skip
# Keys that change no number of a trained adapter, and settings of schemes that only draw a new one.
SILENT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "runtime_config", "qalora_group_size", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config",
}  # fmt: skip
NOTHING = (None, False, {}, [], "none")  # values by which a key does nothing
USUAL = {"r": 8, "lora_alpha": 8}  # what peft takes where a configuration leaves them out
HALF = re.compile(r"\.lora_(embedding_)?([AB])(\.weight)?$")
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")
# What peft 0.13 knows of it; other keys are written only where they differ from their defaults.
ALWAYS = (
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "bias",
    "inference_mode", "fan_in_fan_out", "init_lora_weights", "modules_to_save", "use_rslora", "use_dora",
)  # fmt: skip


class Worn(NamedTuple):
    """The adapter and the quantization with which a model's own weights are loaded."""

    adapter: str | None = None  # the folder of an adapter
    quantize: str = "none"  # or "nf4" or "int8"


ALONE = Worn()


class AdapterError(ModelError):
    """An adapter that cannot be used. The message gives the reason and the fix."""


def kind_of(folder: Path) -> Literal["model", "adapter", "both", "neither"]:
    """Say what a folder holds. A config.json beside an adapter without weights of a model is the adapter's."""
    weights = (folder / WHOLE).exists() or (folder / INDEX).exists()
    if (folder / CONFIG).exists():
        return "both" if weights else "adapter"
    return "model" if weights or (folder / "config.json").exists() else "neither"


def refuse_no_model(folder: Path) -> None:
    """Refuse a folder of policy.path that holds an adapter.

    Raises:
        AdapterError: one paragraph with what it holds, and which keys name it.
    """
    kind = kind_of(folder)
    if kind == "both":
        raise AdapterError(
            f'"{folder}" holds a model and an adapter beside it; loaders differ in which they mean. Move {CONFIG} '
            "away, or name the two apart: policy.path, policy.adapter.path."
        )
    if kind == "adapter":
        config = read_adapter_config(folder)
        base = config.get("base_model_name_or_path")
        named, path = (f' on the base "{base}"', f'= "{base}"') if base else ("", "to the model that it was trained on")
        raise AdapterError(
            f'"{folder}" is an adapter ({config.get("peft_type")}, r {config.get("r")}){named}. Set policy.path {path} '
            f'and policy.adapter.path = "{folder}".{_beside(folder)}'
        )


def _beside(folder: Path) -> str:
    """A sentence on what a trainer left beside its adapter."""
    states = sorted(path.name for path in folder.iterdir() if path.name in ("optimizer.pt", "trainer_state.json"))
    if not states:
        return ""
    return f" It is a checkpoint of another trainer; {' and '.join(states)} beside it are not read."


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the adapter_config.json of a folder, with peft's defaults for rank and alpha.

    Raises:
        AdapterError: it is not there, or no JSON object.
    """
    config = read_json(folder / CONFIG)
    if isinstance(config, dict):
        return {**USUAL, **config}
    if not (folder / CONFIG).exists():
        raise AdapterError(f'"{folder}" is not an adapter folder: it has no {CONFIG}.')
    raise AdapterError(f"{folder / CONFIG} is not a JSON object, or is damaged. Copy it again.")


def refuse_unusable(folder: Path, base: Path | None) -> dict[str, Any]:
    """Refuse an adapter that cannot be trained as it is, or that does not fit its base; returns its configuration.

    Args:
        base: the model folder that it is put on; None: not known yet.

    Raises:
        AdapterError, WeightsError: the reason, and the fix.
    """
    config = read_adapter_config(folder)
    _refuse_kind(folder, config)
    _refuse_keys(folder, config)
    _refuse_values(folder, config)
    if not (folder / TENSORS).exists():
        raise AdapterError(f'"{folder}" holds no {TENSORS}. Save the adapter with save_pretrained() of peft.')
    tensors = tensor_headers_of([folder / TENSORS])
    on_head = next((n for n in tensors if _module(n).rpartition(".")[2] in HEADS and ".lora_" in n), None)
    if on_head is not None:
        raise AdapterError(_of_head(f'adapter "{folder}"', _module(on_head)))
    if not config.get("target_parameters"):  # whose pairs hold those of all experts behind one another
        _refuse_ranks(folder, config, tensors)
    _refuse_halves(folder, tensors)
    of_base = {} if base is None else tensor_headers(base)
    _refuse_shapes(folder, tensors, of_base)
    _refuse_whole(folder, config, tensors, of_base)
    return config


def rank_of(config: dict[str, Any], module: str) -> int:
    """The rank of a module's pair, with what rank_pattern says of it."""
    ranks = config.get("rank_pattern") or {}
    return ranks.get(pattern_of(ranks, module), config["r"])


def pattern_of(patterns: dict[str, Any], module: str) -> str:
    """The first pattern that ends a module's name, as peft looks for it."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _of_head(what: str, module: str) -> str:
    return (
        f"{what} has LoRA on the output head ({module}), whose logits would all be held at once. Leave the head out of "
        f'target_modules; to train it, name it in modules_to_save = ["{module.rpartition(".")[2]}"].'
    )


def _module(name: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    return name.removeprefix(PREFIX).partition(".lora_")[0]


def _refuse_kind(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f'adapter "{folder}" is of type {kind}; ray-align trains LORA. Merge it into its base with '
            "merge_and_unload() of peft, and train the result."
        )
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_STARTS:
        raise AdapterError(changes_base(init, f'adapter "{folder}": '))


def changes_base(init: Any, where: str = "") -> str:
    """The sentence that refuses a scheme whose start is not that of the base on disk."""
    return (
        f'{where}init_lora_weights = "{init}" changes the base\'s weights, or draws on data, so that the base on disk '
        "is not what trains; use true. (A PiSSA adapter becomes a plain one by peft's conversion on saving: "
        "path_initial_model_for_weight_conversion.)"
    )


def _refuse_keys(folder: Path, config: dict[str, Any]) -> None:
    for key, value in sorted(config.items()):
        if key in READ | SILENT or value in NOTHING:
            continue
        raise AdapterError(
            f'adapter "{folder}" sets {key}, which this version does not know; it may change the numbers. Take an '
            "adapter without it, or merge it into its base with peft."
        )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f'adapter "{folder}" has bias = "{config["bias"]}", so it trained biases of the base; ray-align keeps the '
            'base as it is. Merge it into its base with peft, or train with bias = "none".'
        )


def _refuse_values(folder: Path, config: dict[str, Any]) -> None:
    """Refuse ranks and alphas that no scaling can be computed from."""
    patterns = {key: config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    wrong = [key for key, value in patterns.items() if not isinstance(value, dict)]
    given = {key: config[key] for key in USUAL}
    for key in patterns.keys() - wrong:
        given |= {f"{key} of {name!r}": value for name, value in patterns[key].items()}
    for key, value in given.items():
        whole = key.startswith("r")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < math.inf:
            wrong.append(key)
    if wrong:
        raise AdapterError(
            f'adapter "{folder}": {wrong[0]} = {given.get(wrong[0], config.get(wrong[0]))!r} in {CONFIG} is no rank or '
            "alpha. A rank is a whole number from 1, an alpha a number above 0. Save the adapter again with peft."
        )


def _refuse_ranks(folder: Path, config: dict[str, Any], tensors: dict[str, Header]) -> None:
    """Compare the ranks of the configuration with those of the matrices."""
    for name, header in tensors.items():
        module, first = _module(name), header.shape[0] if header.shape else 0
        if name.endswith(".lora_A.weight") and len(header.shape) == 2 and first != rank_of(config, module):
            raise AdapterError(
                f'adapter "{folder}": {CONFIG} gives {module} the rank {rank_of(config, module)}, and its matrix has '
                f"{first}. The two files are of different adapters; copy the folder again."
            )


def _refuse_shapes(folder: Path, tensors: dict[str, Header], base: dict[str, Header]) -> None:
    """Compare the widths of LoRA pairs with the matrices of the base, where its files have them under their names."""
    for name, header in tensors.items():
        if not name.endswith(".lora_A.weight") or len(header.shape) != 2:
            continue
        module = _module(name)
        matrix = base.get(f"{module}.weight") or base.get(f"{module.partition('.')[2]}.weight")
        if matrix is not None and len(matrix.shape) == 2 and header.shape[1] not in matrix.shape:
            raise AdapterError(
                f'adapter "{folder}" was made for layers of width {header.shape[1]}, and policy.path has '
                f"{matrix.shape[1]} ({module}). Take the base that it was trained on."
            )


def _refuse_whole(folder: Path, config: dict[str, Any], tensors: dict[str, Header], base: dict[str, Header]) -> None:
    """Refuse whole weights that modules_to_save does not name: peft adds the embedding of a resized vocabulary."""
    saved = config.get("modules_to_save") or []
    for name, header in tensors.items():
        if any(part in name for part in (".lora_", ".base_layer.", ".token_adapter.")):
            continue
        if any(f".{module}." in f".{name}" for module in saved):
            continue
        own = base.get(name.removeprefix(PREFIX))
        beside = "" if own is None or not own.shape else f"; policy.path has {own.shape[0]:,}"
        rows = f" of {header.shape[0]:,} rows{beside}" if header.shape else ""
        raise AdapterError(
            f'adapter "{folder}" holds a whole weight beside its LoRA pairs, {_module(name)}{rows}: it was probably '
            "trained after the vocabulary was resized. Resize its base in the same way, merge it with "
            "merge_and_unload() of peft, and set policy.path to the result."
        )


def _refuse_halves(folder: Path, tensors: dict[str, Header]) -> None:
    """Look for pairs of which one matrix is missing."""
    for name in tensors:
        found = HALF.search(name)
        if found is None:
            continue
        other = f"{name[: found.start(2)]}{'B' if found[2] == 'A' else 'A'}{name[found.end(2) :]}"
        if other not in tensors:
            raise AdapterError(
                f'adapter "{folder}" holds {name} without its other half, {other}: {TENSORS} is not whole. Copy the '
                "folder again."
            )


def other_base(folder: Path, named: str) -> str | None:
    """The base that an adapter names, if it is not the one it is put on, as far as their last parts tell."""
    theirs = str(read_adapter_config(folder).get("base_model_name_or_path") or "")
    return None if Path(theirs).name in ("", Path(named).name) else theirs


def slim(config: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Cut a configuration down to what differs from peft's defaults, so that older versions of peft read it.

    Args:
        base: the base's name for readers.
    """
    kept = {k: v for k, v in config.items() if k in ALWAYS or (k in READ and v not in NOTHING)}
    fixed = {"base_model_name_or_path": base, "inference_mode": True, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
    return {**kept, **fixed}


def why_not_served(config: dict[str, Any]) -> str | None:
    """Say why vLLM does not serve an adapter beside its base; None if it does."""
    reasons = {
        "modules_to_save": "it has modules_to_save",
        "use_dora": "it is DoRA",
        "lora_bias": "it has biases",
        "trainable_token_indices": "it trains single tokens",
        "target_parameters": "it adapts parameters of experts",
    }
    found = [said for key, said in reasons.items() if config.get(key)]
    return " and ".join(found) if found else None
