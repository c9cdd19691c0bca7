"""The [train] and [deepspeed] sections, and a user's ds_config.json -> the dictionary that DeepSpeed reads.

DeepSpeed ignores top-level keys that it does not know, so they are refused here. Batch sizes, optimizer and schedule
belong to [train]: micro-batches differ in number from step to step, so DeepSpeed is given one as a formality and the
loop owns the boundary of a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

PASSED_ON = {
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "flops_profiler", "memory_breakdown",
    "wall_clock_breakdown", "zero_optimization",
}  # fmt: skip
OWNED = {
    "bf16", "bfloat16", "fp16", "gradient_accumulation_steps", "gradient_clipping", "optimizer", "scheduler",
    "steps_per_print", "train_batch_size", "train_micro_batch_size_per_gpu", "zero_allow_untested_optimizer",
    "communication_data_type", "data_types", "zero_force_ds_cpu_optimizer",
}  # fmt: skip


def build(train: Any, deepspeed: Any) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Args:
        train: the [train] section (or [sft] with its `dtype`): max_grad_norm, dtype, batch_pairs and AdamW's fields.
        deepspeed: the [deepspeed] section.

    Raises:
        ConfigError: the user's file holds unknown keys or contradicts a section.
    """
    zero: dict[str, Any] = {"stage": deepspeed.stage}
    for name in ("offload_optimizer", "offload_param"):
        device = getattr(deepspeed, name)
        if device != "none":
            zero[name] = {"device": device, "pin_memory": True}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.dtype == "bfloat16"},
        # Stated, because with bf16 DeepSpeed would accumulate and communicate gradients in bf16.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "zero_optimization": zero,
    }
    if deepspeed.config is not None:
        user = _read(deepspeed.config)
        _check(user, train, deepspeed)
        theirs = _without_auto(user.pop("zero_optimization", {}))
        result["zero_optimization"] = {**theirs, **zero}
        result.update({k: _without_auto(v) for k, v in user.items() if k in PASSED_ON and v != "auto"})
    return result


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"deepspeed.config = {path!r}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"deepspeed.config = {path!r} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed.config = {path!r} must hold a JSON object")
    return content


def _check(user: dict[str, Any], train: Any, deepspeed: Any) -> None:
    path = deepspeed.config
    unknown = sorted(user.keys() - PASSED_ON - OWNED)
    if unknown:
        known = ", ".join(sorted(PASSED_ON | OWNED))
        raise ConfigError(f"{path}: key(s) not known here: {', '.join(unknown)}. Known are {known}.")
    if isinstance(user.get("zero_optimization", {}), str):
        raise ConfigError(f"{path}: zero_optimization = {user['zero_optimization']!r} must be an object")
    adamw, warmup = user.get("optimizer", {}).get("params", {}), user.get("scheduler", {})
    ours = {
        "train_batch_size": (train.batch_pairs, "train.batch_pairs"),
        "train_micro_batch_size_per_gpu": ("auto", "train.micro_batch_tokens"),
        "gradient_accumulation_steps": ("auto", "train.micro_batch_tokens"),
        "gradient_clipping": (train.max_grad_norm, "train.max_grad_norm"),
        "zero_optimization.stage": (deepspeed.stage, "deepspeed.stage"),
        "zero_optimization.offload_optimizer.device": (deepspeed.offload_optimizer, "deepspeed.offload_optimizer"),
        "zero_optimization.offload_param.device": (deepspeed.offload_param, "deepspeed.offload_param"),
        "bf16.enabled": (train.dtype == "bfloat16", "train.dtype"),
        "bfloat16.enabled": (train.dtype == "bfloat16", "train.dtype"),
        "fp16.enabled": (False, "train.dtype (float16 is not supported)"),
        "communication_data_type": ("fp32", "(fixed)"),
        "data_types.grad_accum_dtype": ("fp32", "(fixed)"),
    }
    for key, (value, name) in ours.items():
        theirs = _at(user, key)
        if theirs not in (None, "auto", value):
            raise ConfigError(f'{path}: {key} = {theirs!r} contradicts {name} = {value!r}. Write "auto", or change one.')
    if user.get("optimizer", {}).get("type", "AdamW") not in ("AdamW", "Adam"):
        raise ConfigError(f"{path}: optimizer.type = {user['optimizer']['type']!r}: the optimizer is AdamW, set in [train]")
    settings = {
        "lr": train.learning_rate,
        "betas": [train.adam_beta1, train.adam_beta2],
        "eps": train.adam_epsilon,
        "weight_decay": train.weight_decay,
    }
    for key, value in adamw.items():
        if key in settings and value not in ("auto", settings[key]):
            raise ConfigError(f"{path}: optimizer.params.{key} = {value!r} contradicts [train], which has {settings[key]!r}")
    if any(value != "auto" for value in warmup.get("params", {}).values()):
        raise ConfigError(f'{path}: the schedule is set by train.schedule and train.warmup_fraction; write "auto" for scheduler')


def _at(tree: dict[str, Any], key: str) -> Any:
    here: Any = tree
    for part in key.split("."):
        if not isinstance(here, dict) or part not in here:
            return None
        here = here[part]
    return here


def _without_auto(tree: Any) -> Any:
    """Drop "auto" values: DeepSpeed itself does not resolve them."""
    if isinstance(tree, dict):
        return {key: _without_auto(value) for key, value in tree.items() if value != "auto"}
    return tree
