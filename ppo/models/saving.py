"""Writing and reading the weights of a model with a value head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppo.models import hub
from ppo.models.restore import of_head
from ppo.models.value_head import ValueHead
from ppo.said import warn

BASE = "pretrained_model."  # before the names of the base model's parameters; not in a state dict, nor on disk
HEAD = "v_head."


def tell_by_saved_names(model: nn.Module, keys: Any) -> None:
    """Name what a load has missed as a state dict does, in place; a hook behind loads, also of what wraps a model."""
    for names in keys:
        names[:] = [name.replace(BASE, "", 1) for name in names]


class SavedWithHead(nn.Module):
    """A state dict has the base model's own names, as on disk and in TRL, and the head's: either model loads it back.

    Of a PEFT model it is complete, so that engines can use it; TRL's holds the head alone.
    """

    pretrained_model: Any
    v_head: ValueHead
    is_peft_model: bool
    policy_adapter_name: str

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """All weights: those of the base model under its own names, and `v_head.summary.*`."""
        found = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for name in [name for name in found if name.startswith(prefix)]:  # all of them, to keep their order
            found[prefix + name.removeprefix(prefix).removeprefix(BASE)] = found.pop(name)
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the base model's names, and those of parameters, which earlier versions wrote."""
        for name in [name for name in state_dict if name.startswith(prefix)]:
            own = name.removeprefix(prefix)
            if own.split(".")[0] not in self._modules:
                state_dict[prefix + BASE + own] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Torch's; what is missing and what is too much are told under the names that `state_dict()` has.

        A lenient load that finds not one weight of the base model is warned of.
        """
        found = super().load_state_dict(state_dict, strict, assign)
        if any(name.startswith(BASE) for name in state_dict):
            self._tell_ties_by_first_name(found.missing_keys)
        own = {name for name in self.state_dict() if not name.startswith(HEAD)}
        if own <= set(found.missing_keys):
            warn(f"not one weight of the base model was loaded, the state dict has others: {sorted(state_dict)[:3]}")
        return found

    def _tell_ties_by_first_name(self, missing: list[str]) -> None:
        """Call all names but the first of a tied weight missing, in place, where it was loaded under one of them.

        So safetensors has it, which keeps one name in a file: in those of earlier versions, perhaps another.
        """
        names: dict[int, list[str]] = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(name)
        for tied in names.values():
            if 0 < len(set(tied) & set(missing)) < len(tied):
                missing[:] = [name for name in missing if name not in tied] + sorted(tied)[1:]

    def post_init(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the value head out of weights named as TRL does, `v_head.summary.weight`; where there is none, nothing.

        Raises:
            ValueError: the head in `state_dict` is incomplete, or has other names or shapes than this one.
        """
        self.v_head.fill_(of_head(state_dict))

    def trl_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights under the names that TRL writes: the base model's own, and `v_head.summary.*`.

        Args:
            state_dict: the weights to rename, if not this model's own; under either naming.

        Returns:
            All weights; of a PEFT model only the head's, for its adapter has files of its own.
        """
        given = self.state_dict() if state_dict is None else state_dict
        named = {name.removeprefix(BASE): tensor for name, tensor in given.items()}
        if self.is_peft_model:
            return {name: tensor for name, tensor in named.items() if name.startswith(HEAD)}
        return named

    def load_trl_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
        """Load weights that are named as `trl_state_dict` names them; of a PEFT model, the head."""
        if self.is_peft_model:
            return self.post_init(state_dict)
        return self.load_state_dict(state_dict, strict=strict)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write what `from_pretrained`, and TRL's, reads back. The folder is made if it is not there.

        A whole model becomes one checkpoint, with the head among the weights. Of a PEFT model the policy's adapter is
        written, and the head alone as `pytorch_model.bin`, where there is one.

        Args:
            state_dict: all weights, where this process does not hold them whole (ZeRO-3: gather them first); under
                this module's names or TRL's.
            is_main_process: whether this process is the one that writes.
            **kwargs: for the base model's own `save_pretrained`, such as `max_shard_size`.

        Raises:
            ValueError: a state dict without a head, or without the adapter of a PEFT model.
            TypeError: `push_to_hub`, which has a method.
        """
        if "push_to_hub" in kwargs:
            raise TypeError("save_pretrained takes no push_to_hub: call push_to_hub(repo_id), which uploads the head.")
        if os.path.isfile(save_directory):
            raise ValueError(f"{os.fspath(save_directory)!r} is a file, and a folder is to be written. Name another.")
        named = self.trl_state_dict(state_dict)
        missing = [f"v_head.{name}" for name in self.v_head.state_dict() if f"v_head.{name}" not in named]
        if missing:
            raise ValueError(f"The state_dict given lacks {missing}. Gather the weights of the whole wrapper for it.")
        if not self.is_peft_model:
            self.pretrained_model.save_pretrained(
                save_directory, state_dict=named, is_main_process=is_main_process, **kwargs
            )
            return
        if state_dict is not None:
            kwargs["state_dict"] = self._whole_adapter(state_dict)
        kwargs.setdefault("selected_adapters", [self.policy_adapter_name])
        self.pretrained_model.save_pretrained(os.fspath(save_directory), is_main_process=is_main_process, **kwargs)
        if is_main_process and named:
            # PEFT puts adapters of another name into a folder of that name, from which they load back.
            folder = Path(save_directory) / ("" if self.policy_adapter_name == "default" else self.policy_adapter_name)
            torch.save({name: tensor.detach().cpu() for name, tensor in named.items()}, folder / "pytorch_model.bin")

    def _whole_adapter(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name.removeprefix(BASE): tensor for name, tensor in state_dict.items()}
        part = f".{self.policy_adapter_name}."  # PEFT names every weight of an adapter so
        adapter = [name for name, _ in self.pretrained_model.named_parameters() if part in f"{name}."]
        missing = [name for name in adapter if name not in given]
        if missing:
            raise ValueError(
                f"The state_dict given lacks {len(missing)} weights of the adapter, {missing[0]!r} first. Gather the "
                "weights of the whole wrapper for it."
            )
        return given

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload model with value head",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> str | None:
        """Upload what `save_pretrained(**kwargs)` writes; the address of the commit. The model is not touched.

        Raises:
            ConnectionError: the Hub is switched off (HF_HUB_OFFLINE=1), cannot be reached, or refuses.
        """
        save = partial(self.save_pretrained, **kwargs)
        return hub.push(save, repo_id, commit_message, private, token, revision, create_pr)
