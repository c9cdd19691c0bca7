"""A recipe of TRL, Axolotl, LLaMA-Factory or OpenRLHF -> settings of ours, and every field that has none."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from pipeline.config.hints import homes
from pipeline.config.read import read, toml_value
from pipeline.config.recipe_adapter import adapter_of
from pipeline.config.recipe_data import data_of
from pipeline.config.recipe_loss import loss_of
from pipeline.config.words import WORDS
from pipeline.errors import ConfigError

PROGRAMS = ("trl", "axolotl", "llamafactory", "openrlhf")
# What they do where a recipe says nothing, and we do otherwise.
HF = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "warmup_ratio": 0.0, "seed": 42}
DEFAULTS: dict[str, dict[str, Any]] = {
    "trl": {**HF, "gradient_checkpointing": True},
    "axolotl": {"micro_batch_size": 1, "num_epochs": 1, "lr_scheduler": "cosine", "sequence_len": 512, "seed": 42},
    "llamafactory": {
        **HF,
        "learning_rate": 5e-5,
        "cutoff_len": 2048,
        "pref_beta": 0.1,
        "pref_loss": "sigmoid",
        "finetuning_type": "lora",
    },
    "openrlhf": {
        "train_batch_size": 128,
        "learning_rate": 1e-5,
        "max_len": 512,
        "lr_scheduler": "cosine_with_min_lr",
        "lr_warmup_ratio": 0.03,
        "adam_betas": [0.9, 0.95],
        "zero_stage": 2,
        "seed": 42,
    },
}
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
OFF = (None, False, "", "no", "none", "None", [], {})
LAUNCHER = ("module", "include", "hostfile", "config_file", "nproc_per_node", "nnodes")  # flags before the program's
TRAINED = ("per_device_train_batch_size", "micro_batch_size", "micro_train_batch_size")


class Recipe(NamedTuple):
    """A recipe of another program in our settings."""

    settings: dict[str, Any]  # by section.field
    left: dict[str, str]  # each field that is not taken over, and why
    off: list[str]  # fields that turn off what is not here
    remarks: list[str]  # what was assumed


def fields_of(path: str) -> dict[str, Any]:
    """Read the fields of a recipe: YAML, or the flags of a command in any other file.

    Raises:
        ConfigError: there are none.
    """
    if path.endswith((".yaml", ".yml")):
        return read(path)
    try:
        words = shlex.split(Path(path).read_text(encoding="utf-8"), comments=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--from {path}: it cannot be read ({error}); give YAML or a script with flags") from None
    found: dict[str, Any] = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = [toml_value(text) for text in ([value] if equals else _until_flag(words[at + 1 :]))]
            if name not in LAUNCHER:
                found[name.rpartition(".")[2]] = True if not values else values[0] if len(values) == 1 else values
    if not found:
        raise ConfigError(f"--from {path}: no field of a recipe is in it; give a YAML file, or a script with flags")
    return found


def _until_flag(words: list[str]) -> list[str]:
    found: list[str] = []
    for word in words:
        if word.startswith("--") or word in ("\n", "\\", "&&", "|", ";"):
            break
        found.append(word)
    return found


def program_of(fields: Mapping[str, Any]) -> str:
    """Tell whose recipe it is by its words."""
    if "base_model" in fields or "rl" in fields:
        return "axolotl"
    if fields.keys() & {"pretrain", "zero_stage", "micro_train_batch_size"}:
        return "openrlhf"
    if fields.keys() & {"stage", "finetuning_type", "cutoff_len", "pref_loss", "template"}:
        return "llamafactory"
    return "trl"


def translate(model: type[BaseModel], fields: Mapping[str, Any], program: str, devices: int) -> Recipe:
    """Turn the fields of a recipe into settings of ours.

    Args:
        model: the class of our configuration.
        devices: how many devices the recipe was run on, for the pairs of a step.
    """
    recipe = Recipe({}, {}, [], [])
    given = {**{k: v for k, v in DEFAULTS[program].items() if not _said(k, fields)}, **fields}
    taken: set[str] = set()
    for rule in RULES:
        taken |= rule(given, recipe, devices)
    for word, value in given.items():
        if word in taken:
            continue
        known, own = WORDS.get(word), homes(model, word)
        key = None
        if known is None:
            key = own[0] if len(own) == 1 or word == "max_length" else None  # data.max_length comes first
        elif not known.note:
            key = known.key
        if key is not None and key not in recipe.settings and not isinstance(value, dict):
            recipe.settings[key] = value
        elif value in OFF:
            recipe.off.append(word)
        else:
            advice = known.advice if known is not None else "nothing of the name is known here"
            recipe.left[word] = advice
    return recipe


def _said(default: str, fields: Mapping[str, Any]) -> bool:
    """Whether a recipe has a word that means the same as a default."""
    same = WORDS[default].key if default in WORDS and not WORDS[default].note else None
    alike = {word for word, known in WORDS.items() if known.key == same and same is not None}
    return default in fields or bool(alike & fields.keys())


# One rule for each group of fields; it returns the words that it has dealt with


def _model(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    recipe.settings["policy.kind"] = "huggingface"
    return set()


def _batch(given: Mapping[str, Any], recipe: Recipe, devices: int) -> set[str]:
    each = next((given[word] for word in TRAINED if word in given), None)
    times = given.get("gradient_accumulation_steps", 1)
    if "train_batch_size" in given:
        recipe.settings["train.batch_pairs"] = given["train_batch_size"]
    elif isinstance(each, int) and isinstance(times, int):
        recipe.settings["train.batch_pairs"] = each * times * devices
        recipe.remarks.append(f"train.batch_pairs = {each} a device x {times} accumulated x {devices} device(s)")
    return {*TRAINED, "gradient_accumulation_steps", "train_batch_size", "num_processes"} & given.keys()


def _schedule(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    taken = set()
    for word in ("lr_scheduler_type", "lr_scheduler"):
        if given.get(word) in SCHEDULES:
            recipe.settings["train.schedule"] = SCHEDULES[given[word]]
            taken.add(word)
        elif given.get(word) == "cosine_with_min_lr":
            recipe.settings["train.schedule"] = "cosine"
            recipe.remarks.append(f"{word} = cosine_with_min_lr: ours falls to 0")
            taken.add(word)
    steps = given.get("warmup_steps", 1)
    if isinstance(steps, int | float) and steps < 1:  # transformers 5: a share of all steps
        recipe.settings["train.warmup_fraction"] = float(steps)
        taken.add("warmup_steps")
    if isinstance(given.get("adam_betas"), list):
        recipe.settings.update(zip(("train.adam_beta1", "train.adam_beta2"), given["adam_betas"], strict=True))
        taken.add("adam_betas")
    if str(given.get("optim", given.get("optimizer", ""))).startswith("adamw"):
        taken |= {"optim", "optimizer"} & given.keys()
    return taken


def _epochs(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    for word in ("num_train_epochs", "num_epochs", "max_epochs"):
        if word in given and float(given[word]).is_integer() and given[word] >= 1:
            recipe.settings["train.epochs"] = int(given[word])
            return {word}
    return set()


def _dtype(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    words = ("bf16", "dtype", "torch_dtype")
    taken = {word for word in words if given.get(word) in (True, "auto", "bfloat16", "float32")}
    for word in taken:
        value = "bfloat16" if given[word] is True else given[word]
        recipe.settings["train.dtype"] = value
    return taken


def _loss(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    return loss_of(given, recipe.settings)


def _adapter(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    return adapter_of(given, recipe.settings, recipe.remarks, recipe.off)


def _outputs(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    taken = set()
    for word in ("output_dir", "save_path"):
        if isinstance(given.get(word), str):
            path = Path(given[word])
            recipe.settings["run.dir"] = "runs" if path.parent == Path(".") else str(path.parent)
            recipe.settings["run.name"] = re.sub(r"[^A-Za-z0-9._-]", "-", path.name).lstrip(".-_") or "run"
            taken.add(word)
    if isinstance(given.get("run_name"), str) and not taken:
        recipe.settings["run.name"] = re.sub(r"[^A-Za-z0-9._-]", "-", given["run_name"]).lstrip(".-_") or "run"
    taken |= {"run_name"} & given.keys()
    for word in ("save_steps", "eval_steps"):
        if isinstance(given.get(word), int) and given[word] >= 1 and given.get("save_strategy", "steps") == "steps":
            continue
        if given.get(word) in OFF or given.get(word) == -1:
            recipe.off.extend({word} & given.keys())
            taken.add(word)
    return taken


def _zero(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    name = given.get("deepspeed")
    found = re.search(r"z(?:ero)?[_-]?([0-3])", name.rpartition("/")[2]) if isinstance(name, str) else None
    if found is None:
        return set()
    recipe.settings["deepspeed.stage"] = int(found[1])
    recipe.remarks.append(f"deepspeed = {name}: its stage alone; deepspeed.config takes the file")
    return {"deepspeed"}


def _trackers(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    named = given.get("report_to", [])
    names = named if isinstance(named, list) else [named]
    known = [name for name in names if name in ("wandb", "mlflow", "trackio", "tensorboard")]
    known += [
        name
        for name in ("wandb", "mlflow")
        if name not in known and (given.get(f"use_{name}") or given.get(f"{name}_project"))
    ]
    if known:
        recipe.settings["report.trackers"] = known
    return {"report_to"} & given.keys() if [*names] == [name for name in names if name in known] else set()


def _strings(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    """OpenRLHF takes strings to a template where it is told so, LLaMA-Factory always."""
    if given.get("apply_chat_template") is True or given.get("template"):
        recipe.settings["data.strings"] = "messages"
    return {"apply_chat_template"} & given.keys()


def _data(given: Mapping[str, Any], recipe: Recipe, _: int) -> set[str]:
    return data_of(given, recipe.settings, recipe.remarks)


Rule = Callable[[Mapping[str, Any], Recipe, int], set[str]]
RULES: tuple[Rule, ...] = (
    _model,
    _batch,
    _schedule,
    _epochs,
    _dtype,
    _loss,
    _adapter,
    _outputs,
    _zero,
    _trackers,
    _strings,
    _data,
)
