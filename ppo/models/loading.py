"""Base models for a value head: by name or as they are, whole or as an adapter, quantised or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from ppo.models.adapters import import_peft, is_peft_model, kbit_keywords, refuse_prompt_learning
from ppo.models.restore import HUB_KEYWORDS, Source, find_file
from ppo.said import warn

# Keywords that say how to load. Beside a model that is loaded already they have nothing left to do.
IDLE = frozenset({
    "cache_dir", "device_map", "dtype", "force_download", "local_files_only", "low_cpu_mem_usage", "max_memory",
    "offload_folder", "proxies", "resume_download", "revision", "subfolder", "token", "torch_dtype",
    "trust_remote_code", "use_auth_token", "use_safetensors", "variant",
})  # fmt: skip


def check_adapters(peft_config: Any, reward_adapter: Any) -> None:
    """Raise ValueError for adapters of a wrong kind, before anything is loaded."""
    if reward_adapter is not None and not isinstance(reward_adapter, str | os.PathLike):
        raise ValueError(
            f"reward_adapter is {reward_adapter!r} and has to be the folder or the Hub name of a saved adapter, a str."
        )
    if peft_config is None:
        return
    if not isinstance(peft_config, import_peft().PeftConfig):
        raise ValueError(f"peft_config is {peft_config!r} and has to be a PeftConfig, such as peft.LoraConfig().")
    refuse_prompt_learning({"peft_config": peft_config})


def load_base(
    parent: Any, source: Any, args: tuple[Any, ...], peft_config: Any, is_trainable: bool, keywords: dict[str, Any]
) -> Any:
    """The base model: loaded through `parent` where `source` is a name, else `source` itself; with its adapter.

    Args:
        keywords: for `parent.from_pretrained`, and among them those of PEFT's `prepare_model_for_kbit_training`,
            which count where a quantised model gets a new adapter.

    Raises:
        ValueError: `source` is of another kind.
        TypeError: keywords that would change a model, with one that is loaded already.
    """
    prepare = {name: keywords.pop(name) for name in kbit_keywords(keywords)}
    if isinstance(source, str | os.PathLike):
        quantised_on_one_device_(keywords)
        hub = hub_keywords(keywords)
        if find_file(source, "adapter_config.json", hub) is not None:
            if peft_config is not None:
                warn(
                    f"{os.fspath(source)!r} is a trained adapter, so its own configuration is used and the peft_config "
                    "given with it is ignored."
                )
            return _trained_adapter(parent, source, args, is_trainable, keywords, hub)
        base = parent.from_pretrained(source, *args, **keywords)
        return base if peft_config is None else _new_adapter(base, peft_config, prepare)
    refuse_late(source, args, keywords)
    if is_peft_model(source):
        if peft_config is not None:
            warn("The model given has an adapter already, so the peft_config given with it is ignored.")
        return source
    if not isinstance(source, PreTrainedModel):
        raise ValueError(
            f"A value head needs a Hugging Face model, and {type(source).__name__} is none. Give a PreTrainedModel, a "
            "PeftModel, or the name or the folder of one."
        )
    return source if peft_config is None else _new_adapter(source, peft_config, prepare)


def refuse_late(model: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Warn of keywords that a loaded model leaves nothing to do for.

    Raises:
        TypeError: others, which would have made another model.
    """
    others = [*args, *(name for name in keywords if name not in IDLE)]
    if others:
        raise TypeError(
            f"{', '.join(map(repr, others))}: these are for loading a model by its name, and a "
            f"{type(model).__name__} was given, which is loaded already. Leave them out."
        )
    if keywords:
        said = ", ".join(f"{name} = {value!r}" for name, value in keywords.items())
        warn(
            f"{said}: left out, for the {type(model).__name__} given is loaded already. Give it where you load that "
            "model."
        )


def hub_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those keywords of a load that say where on the Hub to look."""
    return {name: keywords[name] for name in HUB_KEYWORDS if keywords.get(name) is not None}


def quantised_on_one_device_(keywords: dict[str, Any]) -> None:
    """Put a model in 8 or 4 bits, which cannot be moved later, onto this process's device if nothing else is said.

    `load_in_8bit` and `load_in_4bit`, which transformers 5 no longer takes, become the configuration they stood for.
    """
    flags = {name: keywords.pop(name) for name in ("load_in_8bit", "load_in_4bit") if name in keywords}
    if any(flags.values()):
        keywords["quantization_config"] = BitsAndBytesConfig(**flags)
    quantised = isinstance(keywords.get("quantization_config"), BitsAndBytesConfig)
    if quantised and keywords.get("device_map") is None:
        device: int | str = torch.accelerator.current_device_index() if torch.accelerator.is_available() else "cpu"
        warn(
            f"A model in 8 or 4 bits was asked for without device_map: all of it goes to this process's device, "
            f"{device!r}. Give device_map to say otherwise."
        )
        keywords["device_map"] = {"": device}


def _trained_adapter(
    parent: Any,
    source: Source,
    args: tuple[Any, ...],
    is_trainable: bool,
    keywords: dict[str, Any],
    hub: dict[str, Any],
) -> Any:
    peft = import_peft()
    config = peft.PeftConfig.from_pretrained(source, **hub)
    refuse_prompt_learning({os.fspath(source): config})
    if config.base_model_name_or_path is None:
        raise ValueError(
            f"{os.fspath(source)!r} is an adapter whose adapter_config.json has no base_model_name_or_path. Write the "
            "folder or the name of its base model there, or load the base model and give it as a PeftModel."
        )
    # Where in its repository the adapter lies says nothing about where the base model lies.
    of_base = {name: value for name, value in keywords.items() if name not in ("revision", "subfolder")}
    base = parent.from_pretrained(config.base_model_name_or_path, *args, **of_base)
    return peft.PeftModel.from_pretrained(base, source, is_trainable=is_trainable, **hub)


def _new_adapter(base: Any, peft_config: Any, prepare: dict[str, Any]) -> Any:
    peft = import_peft()
    if getattr(base, "is_loaded_in_8bit", False) or getattr(base, "is_loaded_in_4bit", False):
        base = peft.prepare_model_for_kbit_training(base, **prepare)
    return peft.get_peft_model(base, peft_config)
