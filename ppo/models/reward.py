"""Reward scores from a second adapter on the policy's own trunk."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpo.lm.modes import evaluating
from ppo.models import adapters
from ppo.models.restore import Source
from ppo.models.value_head import ValueHead


class ScoredByAdapter(nn.Module):
    """One model in memory, two adapters: the policy's, and a reward model's with its score head."""

    supported_rm_modules: ClassVar[tuple[str, ...]] = ("score",)

    pretrained_model: Any
    score: nn.Linear
    is_peft_model: bool
    rm_adapter_name: str | None
    v_head: ValueHead

    def _last_hidden_state(self, output: Any) -> Tensor:
        """The input of the output head, taken from a base model's answer: (B, T, d)."""
        raise NotImplementedError

    def add_and_load_reward_modeling_adapter(
        self,
        adapter_model_id: Source,
        adapter_name: str = "reward_model_adapter",
        token: str | bool | None = None,
    ) -> None:
        """Load a reward adapter, trained for sequence classification, next to the policy's, and freeze it.

        Raises:
            ValueError: this is no PEFT model, the name is taken, or the adapter has no score head.
        """
        base = self.pretrained_model
        if not self.is_peft_model:
            raise ValueError(
                f"A reward adapter needs a PEFT model, and the base of this one is {type(base).__name__}. Load it with "
                "peft_config, or from a trained adapter."
            )
        if adapter_name in base.peft_config:
            raise ValueError(f"There is an adapter named {adapter_name!r} already. Give another adapter_name.")
        hub_keywords = {} if token is None else {"token": token}
        score = adapters.read_score(adapter_model_id, self.supported_rm_modules, hub_keywords)
        trainable = adapters.trainability(base)
        with evaluating(base):  # PEFT leaves the model in evaluation mode; 0.18 also trains what it loads
            base.load_adapter(os.fspath(adapter_model_id), adapter_name, is_trainable=False, **hub_keywords)
        adapters.restore_trainability_(base, trainable)
        self.rm_adapter_name = adapter_name
        self.score = score.to(self.v_head.summary.weight.device)

    @torch.no_grad()
    def compute_reward_score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        ppo_adapter_name: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The reward adapter's score at every position: (B, T, labels). `last_token_reward` takes the sequence's.

        Mode, adapter and what is trainable are afterwards as before, also after an error.

        Args:
            ppo_adapter_name: the adapter that is active afterwards; None: the one before.

        Raises:
            ValueError: no reward adapter is loaded, or `ppo_adapter_name` is no adapter.
        """
        if self.rm_adapter_name is None:
            raise ValueError(
                "No reward adapter is loaded. Give reward_adapter to from_pretrained, or call "
                "add_and_load_reward_modeling_adapter."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; they have to "
                "be of one shape."
            )
        names = list(self.pretrained_model.peft_config)
        if ppo_adapter_name is not None and ppo_adapter_name not in names:
            raise ValueError(
                f"ppo_adapter_name is {ppo_adapter_name!r}, and the adapters are {names}. Give one of them."
            )
        kwargs |= {"output_hidden_states": True, "return_dict": True}
        active = adapters.adapter_active(self.pretrained_model, self.rm_adapter_name, ppo_adapter_name)
        with evaluating(self.pretrained_model), active:
            output = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = self._last_hidden_state(output)
        return self.score(hidden.to(device=self.score.weight.device, dtype=self.score.weight.dtype))
