"""The adapter that a policy starts with, as a folder: given, or drawn once and kept in the workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo.lm.adapter_files import CONFIG, read_adapter_config
from dpo.lm.whole_folder import read_json
from pipeline.errors import ConfigError
from pipeline.place import Place
from pipeline.process import Process
from pipeline.store.artifacts import begin, commit, fingerprint, take_up

if TYPE_CHECKING:
    from pipeline.config import Adapter as Keys

FORMAT_VERSION = 1
# Keys of [policy.adapter] -> those of adapter_config.json.
OF_PEFT = {"r": "r", "alpha": "lora_alpha", **{name: name for name in (
    "target_modules", "target_parameters", "modules_to_save", "use_dora", "use_rslora", "init_lora_weights",
)}}  # fmt: skip


class Adapter(NamedTuple):
    """An adapter's folder, and what it does to its base."""

    folder: Path
    digest: str
    neutral: bool  # the base computes the same with and without it
    given: bool = False  # by policy.adapter.path


def opened(place: Place, folder: Path, base: Path, digest: str, given: bool = False) -> Adapter:
    """An adapter folder, put on a base of this digest.

    Raises:
        AdapterError: it does not fit the base.
    """
    dtype = place.config.train.dtype
    kind = f"adapter {FORMAT_VERSION}, {dtype}, {digest}"
    told = place.memo.digest(folder, kind, lambda path: Process(_describe, path, base, dtype).result())
    its, _, neutral = told.partition(" ")
    return Adapter(folder, its, neutral == "neutral", given)


def _describe(folder: Path, base: Path, dtype: str) -> str:
    from dpo.lm.adapter_identity import describe  # with torch, which the driver does without

    found = describe(folder, base, dtype)
    return f"{found.digest} {'neutral' if found.neutral else 'acts'}"


def drawn(place: Place, base: Path, digest: str) -> Adapter:
    """The new adapter that [policy.adapter] describes on a base of this digest, drawn once for a seed.

    Raises:
        AdapterError: the keys do not fit the base.
    """
    keys: Any = place.config.policy
    made_of = {
        "stage": "adapter",
        "format": FORMAT_VERSION,
        "keys": peft_keys(keys.adapter),
        "seed": place.config.run.seed,
        "base": digest,
        "dtype": place.config.train.dtype,  # in which DoRA takes its norms
    }
    folder = place.workspace / "adapters" / fingerprint(made_of)
    if take_up(folder, made_of, place.terminal.note) is None:
        Process(make_adapter, folder, made_of, base, base_name(place.config.policy)).result()
    return opened(place, folder, base, digest)


def peft_keys(keys: Keys) -> dict[str, Any]:
    """The keys of [policy.adapter] in peft's words."""
    return {theirs: getattr(keys, ours) or None for ours, theirs in OF_PEFT.items()}


def given_keys(keys: Keys) -> dict[str, Any]:
    """The keys of an adapter in peft's words: of [policy.adapter], or of the folder that it names, where it is here."""
    there = keys.path is not None and isinstance(read_json(Path(keys.path) / CONFIG), dict)
    return {**peft_keys(keys), **(read_adapter_config(Path(str(keys.path))) if there else {})}


def base_name(policy: Any) -> str | None:
    """The name of the base for readers of an adapter: that of the hub, or the last part of a path."""
    path = policy.path
    return Path(path).name if path is not None and Path(path).is_absolute() else path


def make_adapter(folder: Path, made_of: dict[str, Any], base: Path, name: str | None) -> None:
    """Draw the adapter that `made_of` describes, and write it."""
    import torch
    from transformers import AutoConfig

    from dpo.lm.adapters import draw  # with peft
    from dpo.lm.hf import load_network, without_dropout

    config = without_dropout(AutoConfig.from_pretrained(base, trust_remote_code=False))
    network = load_network(base, config, getattr(torch, made_of["dtype"]))
    adapted = draw(network, {k: v for k, v in made_of["keys"].items() if v is not None}, made_of["seed"])
    own = begin(folder)
    adapted.write(own, ((name, tensor.float()) for name, tensor in adapted.trained()), name)
    commit(own, folder, made_of, {"parameters": sum(p.numel() for _, p in adapted.trained())})


def refuse_contradicted(keys: Keys, folder: Path) -> None:
    """Refuse keys beside policy.adapter.path that the adapter there has otherwise.

    Raises:
        ConfigError: names the first one.
    """
    theirs = read_adapter_config(folder)
    for ours in sorted(keys.model_fields_set & OF_PEFT.keys()):
        given, there = _plain(getattr(keys, ours)), _plain(theirs.get(OF_PEFT[ours]))
        if ours != "init_lora_weights" and given != there:
            raise ConfigError(
                f'policy.adapter.{ours} = {_shown(given)}, and the adapter "{folder}" has {OF_PEFT[ours]} = '
                f"{_shown(there)}; leave it out"
            )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value or None


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
