"""The models that a configuration names beside policy.path: an adapter to go on with, and a reference of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dpo.lm.adapter_files import AdapterError, kind_of, other_base, refuse_no_model, refuse_unusable
from dpo.lm.model_config import read_config
from pipeline.config import HuggingFacePolicy
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.errors import ConfigError
from pipeline.models.adapted import refuse_contradicted
from pipeline.models.fits import check_fit
from pipeline.models.judged import refuse_untrainable
from pipeline.place import Place
from pipeline.store.hub import model_folder

START, BASE = "start", "base"  # words of reference.model; anything else is a folder or a name


def given_adapter(place: Place, base: Path | None) -> Path | None:
    """The folder of policy.adapter.path, which fits the policy; None where there is none.

    Raises:
        InputError: it cannot be trained, or a library is missing.
    """
    config, policy = place.config, place.config.policy
    if not isinstance(policy, HuggingFacePolicy) or policy.adapter is None:
        return None
    _refuse_missing("peft", "[policy.adapter]", "peft")
    if policy.quantize != "none":
        _refuse_missing("bitsandbytes", f'policy.quantize = "{policy.quantize}"', "qlora")
        if deepspeed_settings(config.train, config.deepspeed)["zero_optimization"]["stage"] == 3:
            raise ConfigError(
                "deepspeed.stage = 3 does not shard a quantized base safely; set deepspeed.stage = 2 (each GPU then "
                'holds the whole frozen base), or policy.quantize = "none"'
            )
    if policy.adapter.path is None:
        return None
    folder = model_folder(policy.adapter.path, "policy.adapter.path")
    if kind_of(folder) == "both":
        refuse_no_model(folder)
    if kind_of(folder) == "model":
        raise AdapterError(
            f'policy.adapter.path = "{folder}" is a whole model, not an adapter. To train it, set policy.path to it; '
            "to draw a new adapter on policy.path, leave policy.adapter.path out."
        )
    refuse_unusable(folder, base)
    refuse_contradicted(policy.adapter, folder)
    _say_other_base(place, folder)
    return folder


def _say_other_base(place: Place, folder: Path) -> None:
    named = place.config.policy.path or "a random model"
    theirs = other_base(folder, named)
    if theirs is not None:
        said = f'adapter "{folder}" names the base "{theirs}", policy.path is "{named}"; the run takes policy.path'
        place.terminal.note(f"warning   {said}")


def _refuse_missing(package: str, key: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f'{key} needs {package}, which is not installed: pip install -e ".[{extra}]"')


def given_reference(place: Place, base: Path | None, tokens: int) -> Path | None:
    """The folder of reference.model, of a model or of an adapter on the policy's base; None for start and base.

    Args:
        tokens: in the tokenizer's vocabulary.

    Raises:
        InputError: it cannot be scored.
    """
    config, name = place.config, place.config.reference.model
    if name in (START, BASE):
        return None
    folder = model_folder(name, "reference.model")
    if kind_of(folder) == "adapter":
        if not isinstance(config.policy, HuggingFacePolicy):
            raise ConfigError(
                f'reference.model = "{name}" is an adapter, and policy.kind = "x-transformers" can wear none; name a '
                "model, or merge the adapter into its base"
            )
        _refuse_missing("peft", f'reference.model = "{name}", an adapter,', "peft")
        refuse_unusable(folder, base)
        _say_other_base(place, folder)
        return folder
    refuse_untrainable(place, folder)
    check_fit(read_config(folder), str(folder), tokens, config.data.max_length)
    return folder
