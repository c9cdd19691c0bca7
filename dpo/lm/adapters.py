"""LoRA adapters on a Hugging Face network: made, put on, switched off, written. The only file that imports peft."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from dpo.lm.adapter_files import CONFIG, NOTHING, PREFIX, READ, TENSORS, AdapterError, read_adapter_config, slim
from dpo.lm.adapter_identity import COPY, PAIR, adapter_tensors

NAME = "default"  # of the one adapter on a network
SHOWN = 8  # names of modules in a message


class Adapted:
    """The adapter on a network, beside the network itself: no module, so that it adds no names."""

    def __init__(self, model: Any):
        """`model` is peft's own, around the network."""
        self.model = model

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the trained tensors under their names in the network."""
        network = self.model.get_base_model()
        return ((name, p) for name, p in network.named_parameters() if p.requires_grad)

    def in_files(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The trained tensors, whole, under the names of an adapter's file."""
        named = {f"{PREFIX}{name}": tensor for name, tensor in tensors}
        return get_peft_model_state_dict(self.model, named, NAME, save_embedding_layers=False)

    def write(self, folder: Path, tensors: Iterable[tuple[str, Tensor]], base: str | None) -> None:
        """Write an adapter folder. `base`: the name of the base for readers."""
        found = {name: t.detach().to("cpu").contiguous() for name, t in self.in_files(tensors).items()}
        save_file(found, folder / TENSORS, metadata={"format": "pt"})
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in self.model.peft_config[NAME].to_dict().items()}
        plain = slim({**config, "peft_type": "LORA"}, base)
        (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def active(self, head: Any) -> Any:
        """The head that computes: where it is trained whole, its copy, or the base's own while that is switched off."""
        if not isinstance(head, ModulesToSaveWrapper):
            return head
        return head.original_module if head.disable_adapters else head.modules_to_save[NAME]

    def heads(self, head: Any) -> list[Any]:
        """All heads that may compute."""
        return [head.original_module, head.modules_to_save[NAME]] if isinstance(head, ModulesToSaveWrapper) else [head]

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> tuple[Any, float]:
        """Add the adapter to the weights of its network; returns that, and the share that is lost in another type.

        That is the norm of what weights of this type lack of the change, over the norm of the change.

        Raises:
            AdapterError: a bias of the adapter has none to be added to.
        """
        changed = lost = 0.0
        for module in list(self.model.modules()):
            if not isinstance(module, LoraLayer | ModulesToSaveWrapper):
                continue
            for before, after in self._merge(module):
                change = after.float() - before.float()
                changed += float(change.double().square().sum())
                lost += float((after.to(dtype).float() - before.float() - change).double().square().sum())
        network = self.model.merge_and_unload()
        return network, (lost / changed) ** 0.5 if changed else 0.0

    def _merge(self, module: Any) -> list[tuple[Tensor, Tensor]]:
        """Merge one module; returns each of its base's parameters before and after."""
        if isinstance(module, ModulesToSaveWrapper):
            saved = module.modules_to_save[NAME].parameters()
            return list(zip(module.original_module.parameters(), saved, strict=True))
        own = list(module.get_base_layer().parameters(recurse=False))
        before = [parameter.detach().clone() for parameter in own]
        try:
            module.merge(adapter_names=[NAME])
        except RuntimeError as error:  # peft's, for lora_bias on a layer without bias
            raise AdapterError(f"the adapter cannot be merged: {error} Export it as it is.") from None
        after = module.get_base_layer().parameters(recurse=False)
        return list(zip(before, after, strict=True))

    def switch(self, on: bool) -> None:
        """Let the network compute with its adapter, or as its base. That also changes what has a gradient."""
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(on)


def draw(network: Any, keys: dict[str, Any], seed: int) -> Adapted:
    """Put a new adapter on a network.

    Args:
        keys: those of peft's LoraConfig.

    Raises:
        AdapterError: the keys name no modules, or some that cannot be adapted.
    """
    names = {name.rpartition(".")[2] for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    try:
        adapted = _put_on(network, LoraConfig(task_type="CAUSAL_LM", **keys), seed)
    except ValueError as error:  # peft's, where nothing matches
        raise AdapterError(
            f"[policy.adapter] names no modules of the model: target_modules = {keys.get('target_modules')!r}. Its "
            f"linear layers are named {_listed(names)}. (peft says: {str(error).splitlines()[0][:200]})"
        ) from None
    except (AttributeError, KeyError) as error:
        raise AdapterError(f"[policy.adapter] peft cannot put this adapter on the model: {error}") from None
    except re.error as error:
        raise AdapterError(
            f"policy.adapter.target_modules = {keys.get('target_modules')!r} is no regular expression: {error}"
        ) from None
    _refuse_head(network)
    _refuse_unmatched(network, keys.get("target_modules"), names)
    saved = {n.rpartition(".")[2] for n, m in network.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    lacking = set(keys.get("modules_to_save") or ()) - saved
    if lacking:
        raise AdapterError(
            f"policy.adapter.modules_to_save names {', '.join(sorted(lacking))}, which the model does not have."
        )
    return adapted


def _refuse_unmatched(network: Any, targets: Any, names: set[str]) -> None:
    """Refuse a list of modules of which some are nowhere in the model: peft is content with one that is."""
    if not isinstance(targets, list):
        return
    adapted = [name for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    lacking = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in adapted)]
    if lacking:
        raise AdapterError(
            f"policy.adapter.target_modules names {', '.join(map(repr, lacking))}, which the model does not have. Its "
            f"linear layers are named {_listed(names)}."
        )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def put_on(network: Any, folder: Path, dtype: torch.dtype) -> Adapted:
    """Put the adapter of a folder on a network, in this type; every dropout is 0.

    Raises:
        AdapterError: it does not fit the network.
    """
    found = {k: v for k, v in read_adapter_config(folder).items() if k in READ and v not in NOTHING}
    found.pop("peft_type", None)
    keys = {**found, "init_lora_weights": True, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
    try:
        adapted = _put_on(network, LoraConfig(**keys), 0)
    except (ValueError, AttributeError, KeyError, re.error) as error:
        raise AdapterError(f'adapter "{folder}" cannot be put on this model: {str(error).splitlines()[0]}') from None
    _refuse_head(network)
    for parameter in (p for _, p in adapted.trained()):
        parameter.data = parameter.data.to(dtype)
    _fill(adapted, folder)
    return adapted


def _put_on(network: Any, config: LoraConfig, seed: int) -> Adapted:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tied embedding, which is refused below, and of Conv1D layers
        torch.manual_seed(seed)
        return Adapted(get_peft_model(network, config, autocast_adapter_dtype=False))


def _refuse_head(network: Any) -> None:
    """Refuse LoRA on the output head, and on an embedding that is the head as well."""
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if isinstance(head, LoraLayer):
        raise AdapterError(
            "[policy.adapter] LoRA on the output head would hold all logits at once. Leave the head out of "
            "target_modules; to train it, name it in modules_to_save."
        )
    if isinstance(embedding, LoraLayer) and network.config.get_text_config().tie_word_embeddings:
        raise AdapterError(
            "[policy.adapter] the embedding of this model is its output head as well (tie_word_embeddings), and no "
            "merged model could hold LoRA on one of the two. Leave the embedding out of target_modules."
        )


def _fill(adapted: Adapted, folder: Path) -> None:
    """Copy the tensors of a folder into an adapter, each of them and no other."""
    given = {
        f"{PREFIX}{name}": t for name, t in adapter_tensors(folder) if COPY.match(name) is None or PAIR.match(name)
    }
    wanted = adapted.in_files((name, p.detach()) for name, p in adapted.trained())
    for names, said in ((wanted.keys() - given.keys(), "lacks"), (given.keys() - wanted.keys(), "has unknown")):
        if names:
            raise AdapterError(
                f'adapter "{folder}" {said} tensors ({len(names)}), {min(names)} first. Take an adapter that was '
                "trained on this base."
            )
    set_peft_model_state_dict(adapted.model, given, NAME)
