"""The [train] and [deepspeed] sections and a user's ds_config.json -> the dictionary that DeepSpeed reads.

DeepSpeed ignores unknown top-level keys, so they are refused here. Batch sizes, optimizer and schedule belong to
[train]. The number of micro-batches changes from step to step, so the training loop decides where a step ends;
DeepSpeed gets the number 1 as a formality.
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

OBJECTS = (
    "bf16", "bfloat16", "data_types", "fp16", "optimizer", "optimizer.params", "scheduler", "scheduler.params",
    "zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param",
)  # fmt: skip

# Keys of [deepspeed] that a file may set too, under zero_optimization.
TUNED = ("overlap_comm", "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters")


def given_stage(deepspeed: Any) -> int | None:
    """The stage that [deepspeed] or its file names; None: it is to be chosen.

    Raises:
        ConfigError: the file cannot be read, or names no stage that there is.
    """
    if deepspeed.stage != "auto":
        return deepspeed.stage
    named = None if deepspeed.config is None else _at(_read(deepspeed.config), "zero_optimization.stage")
    if named in (None, "auto"):
        return None
    if type(named) is not int or not 0 <= named <= 3:
        raise ConfigError(f"{deepspeed.config}: zero_optimization.stage = {named!r}: it must be 'auto', 0, 1, 2 or 3")
    return named


def usual_stage(deepspeed: Any, one_gpu: bool = False) -> int:
    """The stage as given; where it is to be chosen and no memory is known: 3 for weights on the CPU, 1 on one GPU, 2.

    Raises:
        ConfigError: the file cannot be read.
    """
    given = given_stage(deepspeed)
    if given is not None:
        return given
    if deepspeed.offload_param != "none":
        return 3
    return 1 if one_gpu else 2


def deepspeed_settings(train: Any, deepspeed: Any) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`.

    Args:
        train: the [train] section.
        deepspeed: the [deepspeed] section.

    Raises:
        ConfigError: the user's file has unknown keys or contradicts a section.
    """
    user, stage = {} if deepspeed.config is None else _read(deepspeed.config), usual_stage(deepspeed)
    _check(user, train, deepspeed, stage)
    zero: dict[str, Any] = {**_without_auto(user.get("zero_optimization") or {}), "stage": stage}
    zero |= {name: value for name in TUNED if (value := getattr(deepspeed, name)) is not None}
    for name in ("offload_optimizer", "offload_param"):
        device = getattr(deepspeed, name)
        if device != "none":
            zero[name] = {"pin_memory": True, **(zero.get(name) or {}), "device": device}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.dtype == "bfloat16"},
        # Set explicitly: with bf16, DeepSpeed's default is to accumulate and communicate gradients in bf16.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "zero_optimization": zero,
    }
    return result | _without_auto({k: v for k, v in user.items() if k in PASSED_ON - {"zero_optimization"}})


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


def _check(user: dict[str, Any], train: Any, deepspeed: Any, stage: int) -> None:
    path = deepspeed.config
    unknown = sorted(user.keys() - PASSED_ON - OWNED)
    if unknown:
        known = ", ".join(sorted(PASSED_ON | OWNED))
        raise ConfigError(f"{path}: unknown key(s): {', '.join(unknown)}. The known keys are {known}.")
    for key in OBJECTS:
        value = _at(user, key)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{path}: {key} = {value!r} must be an object")
    if _at(user, "fp16.enabled") not in (None, "auto", False):
        raise ConfigError(
            f"{path}: fp16.enabled = True contradicts train.dtype = {train.dtype!r}; float16 is not supported"
        )
    ours = {
        "train_batch_size": (train.batch_pairs, "train.batch_pairs"),
        "train_micro_batch_size_per_gpu": ("auto", "train.micro_batch_tokens"),
        "gradient_accumulation_steps": ("auto", "train.micro_batch_tokens"),
        "gradient_clipping": (train.max_grad_norm, "train.max_grad_norm"),
        "zero_optimization.stage": (stage, "deepspeed.stage"),
        "zero_optimization.offload_optimizer.device": (deepspeed.offload_optimizer, "deepspeed.offload_optimizer"),
        "zero_optimization.offload_param.device": (deepspeed.offload_param, "deepspeed.offload_param"),
        **{
            f"zero_optimization.{name}": (value, f"deepspeed.{name}")
            for name in TUNED
            if (value := getattr(deepspeed, name)) is not None
        },
        "bf16.enabled": (train.dtype == "bfloat16", "train.dtype"),
        "bfloat16.enabled": (train.dtype == "bfloat16", "train.dtype"),
        "communication_data_type": ("fp32", "what ray-align sets"),
        "data_types.grad_accum_dtype": ("fp32", "what ray-align sets"),
        "optimizer.params.lr": (train.learning_rate, "train.learning_rate"),
        "optimizer.params.betas": ([train.adam_beta1, train.adam_beta2], "[train.adam_beta1, train.adam_beta2]"),
        "optimizer.params.eps": (train.adam_epsilon, "train.adam_epsilon"),
        "optimizer.params.weight_decay": (train.weight_decay, "train.weight_decay"),
    }
    for key, (value, name) in ours.items():
        theirs = _at(user, key)
        if theirs not in (None, "auto", value):
            said = train.dtype if name == "train.dtype" else value
            raise ConfigError(f'{path}: {key} = {theirs!r} contradicts {name} = {said!r}; write "auto", or change one')
    optimizer = _at(user, "optimizer.type")
    if optimizer not in (None, "auto", "AdamW", "Adam"):
        raise ConfigError(f"{path}: optimizer.type = {optimizer!r}: the optimizer is AdamW, set in [train]")
    for key, value in (_at(user, "scheduler.params") or {}).items():
        if value != "auto":
            raise ConfigError(
                f"{path}: scheduler.params.{key} = {value!r}: the schedule is train.schedule = {train.schedule!r} with "
                f'train.warmup_fraction = {train.warmup_fraction}. Write "auto", and set it there.'
            )


def _at(tree: dict[str, Any], key: str) -> Any:
    here: Any = tree
    for part in key.split("."):
        if not isinstance(here, dict) or part not in here:
            return None
        here = here[part]
    return here


def _without_auto(tree: Any) -> Any:
    """Drop "auto" values, which DeepSpeed itself does not resolve."""
    if isinstance(tree, dict):
        return {key: _without_auto(value) for key, value in tree.items() if value != "auto"}
    return tree
