"""The fields of a recipe that ask for an adapter -> [policy.adapter] and policy.quantize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SWITCHES = ("use_peft", "adapter", "finetuning_type")  # of TRL, of Axolotl, of LLaMA-Factory
RANK = ("lora_r", "lora_rank")  # OpenRLHF's is its switch, too
TARGETS = ("lora_target_modules", "lora_target", "target_modules")
GIVEN = ("adapter_name_or_path", "lora_model_dir")  # a trained adapter, which has settings of its own
BITS = ("load_in_4bit", "load_in_8bit", "quantization_bit")
ALIKE = ("lora_target_parameters", "lora_modules_to_save", "use_dora", "use_rslora")  # the same here, by their words


def adapter_of(given: Mapping[str, Any], settings: dict[str, Any], remarks: list[str], off: list[str]) -> set[str]:
    """Translate the fields of an adapter; returns those that have been dealt with.

    Args:
        given: the recipe's fields, and defaults of its program.
        remarks: is added to where something was assumed.
        off: is added to where fields do nothing, since no adapter is asked for.
    """
    words = {word for word in (*RANK, *TARGETS, *ALIKE, *BITS, "lora_alpha", "lora_target_linear") if word in given}
    taken = {word for word in SWITCHES if word in given}
    if not _asked(given):
        off.extend(sorted(words))
        return words | taken
    rank, alpha, targets = _first(given, RANK), given.get("lora_alpha"), _targets(given)
    if not any(given.get(word) for word in GIVEN):
        standard_rank, standard_alpha = _standard(given, rank)
        rank, alpha = rank or standard_rank, alpha or standard_alpha
        if targets is None:
            remarks.append("no target modules are given, for which peft has a list by model; here all linear layers")
    found = {"r": rank, "alpha": alpha, "target_modules": targets}
    settings |= {f"policy.adapter.{key}": value for key, value in found.items() if value is not None}
    if given.get("load_in_4bit") or given.get("quantization_bit") == 4 or given.get("adapter") == "qlora":
        settings["policy.quantize"] = "nf4"
    elif given.get("load_in_8bit") or given.get("quantization_bit") == 8:
        settings["policy.quantize"] = "int8"
    return taken | words.difference(ALIKE)


def _asked(given: Mapping[str, Any]) -> bool:
    if "finetuning_type" in given:
        return given["finetuning_type"] == "lora"
    if "use_peft" in given or "adapter" in given:
        return given.get("use_peft") is True or given.get("adapter") in ("lora", "qlora")
    return bool(given.get("lora_rank"))


def _standard(given: Mapping[str, Any], rank: Any) -> tuple[int | None, float | None]:
    """Rank and alpha where a recipe does not say them."""
    if "finetuning_type" in given:
        return 8, 2.0 * (rank or 8)
    if "use_peft" in given:
        return 16, 32.0
    return None, None if "adapter" in given else 16.0


def _targets(given: Mapping[str, Any]) -> str | list[str] | None:
    """The modules that get a pair of matrices: names, or all linear layers; None where nothing is said."""
    named = _first(given, TARGETS)
    if given.get("lora_target_linear") or named in ("all", "all-linear") or named == ["all-linear"]:
        return "all-linear"
    return [name.strip() for name in named.split(",")] if isinstance(named, str) else named


def _first(given: Mapping[str, Any], words: tuple[str, ...]) -> Any:
    return next((given[word] for word in words if given.get(word)), None)
