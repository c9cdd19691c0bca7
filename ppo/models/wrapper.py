"""A Hugging Face language model with a value head on its last hidden states.

TRL's wrappers of the same names, corrected where they were in the way: an object can be built directly, its own state
dict loads back (a DeepSpeed checkpoint as well), sharded folders are read, uploading leaves the model alone, sampling
is without dropout, and reading a reward leaves mode, adapter and gradients as they were. What lies on disk is TRL's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo.lm.modes import evaluating
from ppo.models import adapters, devices, loading, restore
from ppo.models.reward import ScoredByAdapter
from ppo.models.saving import SavedWithHead, tell_by_saved_names
from ppo.models.value_head import ValueHead
from ppo.said import warn


class PreTrainedModelWrapper(SavedWithHead, ScoredByAdapter):
    """The common part of the two kinds of model; use one of the subclasses."""

    transformers_parent_class: ClassVar[Any] = None
    lm_head_namings: ClassVar[tuple[str, ...]] = ()
    is_encoder_decoder: ClassVar[bool] = False
    supported_args: ClassVar[tuple[str, ...]] = (
        "summary_dropout_prob",
        "v_head_initializer_range",
        "v_head_init_strategy",
    )
    supported_modules: ClassVar[tuple[str, ...]] = ("v_head",)

    def __init__(
        self,
        pretrained_model: Any,
        summary_dropout_prob: float | None = 0.1,
        v_head_initializer_range: float = 0.2,
        v_head_init_strategy: str | None = None,
        **kwargs: Any,
    ):
        """Put a new value head on a model; it is in the model's mode.

        Args:
            pretrained_model: a PreTrainedModel or PeftModel with a language-model head.
            summary_dropout_prob: dropout before the head, if the model's configuration does not say one; None: none.
            v_head_initializer_range: the standard deviation of the strategy "normal".
            v_head_init_strategy: None (torch's own initialisation) or "normal".
            **kwargs: those of a loader that have nothing left to do, such as `torch_dtype`; they are warned of.

        Raises:
            TypeError: another keyword.
            ValueError: a model without language-model head, of the other kind, with an adapter that adds virtual
                tokens, or offloaded in part; a hidden size, dropout or strategy that ValueHead does not know.
        """
        super().__init__()
        self.register_load_state_dict_post_hook(tell_by_saved_names)
        loading.refuse_late(pretrained_model, (), kwargs)
        self._check(pretrained_model)
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        self.is_peft_model = adapters.is_peft_model(pretrained_model)
        self.policy_adapter_name = pretrained_model.active_adapter if self.is_peft_model else "default"
        self.rm_adapter_name = None
        # Set by transformers on a quantised model, and only there.
        self.is_loaded_in_8bit: bool = getattr(pretrained_model, "is_loaded_in_8bit", False)
        self.is_loaded_in_4bit: bool = getattr(pretrained_model, "is_loaded_in_4bit", False)
        self.v_head = ValueHead(self.config, summary_dropout_prob)
        self._init_weights(v_head_init_strategy, v_head_initializer_range)
        # One mode for the whole: models that were loaded are in evaluation mode, and so is their head.
        self.training = pretrained_model.training
        self.v_head.train(self.training)
        self._place_head()

    def _init_weights(self, v_head_init_strategy: str | None = None, v_head_initializer_range: float = 0.2) -> None:
        """Initialise the value head; see `ValueHead.init_weights_`."""
        self.v_head.init_weights_(v_head_init_strategy, v_head_initializer_range)

    def _check(self, model: Any) -> None:
        base = model
        if adapters.is_peft_model(model):
            adapters.refuse_prompt_learning(model.peft_config)
            base = model.get_base_model()
        if not isinstance(base, PreTrainedModel):
            raise ValueError(
                f"A value head needs a Hugging Face model, and {type(model).__name__} is none. Give a PreTrainedModel "
                "or a PeftModel, or the name of a model to from_pretrained."
            )
        kind = type(base).__name__
        names = [name for name, _ in base.named_modules()]
        if base.get_output_embeddings() is None and not any(n in name for n in self.lm_head_namings for name in names):
            raise ValueError(
                f"{kind} has no language-model head: get_output_embeddings() gives None, and no module is named "
                f"{' or '.join(self.lm_head_namings)}. Load the model with its head, such as through "
                f"{self.transformers_parent_class.__name__}."
            )
        if bool(base.config.is_encoder_decoder) != self.is_encoder_decoder:
            other = "AutoModelFor" + ("CausalLM" if self.is_encoder_decoder else "Seq2SeqLM") + "WithValueHead"
            raise ValueError(
                f"{kind} has config.is_encoder_decoder = {base.config.is_encoder_decoder}, and {type(self).__name__} "
                f"is for the other kind of model. Use {other}."
            )

    def _place_head(self) -> None:
        """Put the head where the model is; spread over several devices, everything comes out on one of them."""
        # Set by transformers on a model that was loaded with a device_map, and only there.
        device_map: Mapping[str, Any] = getattr(self.pretrained_model, "hf_device_map", {})
        devices.refuse_offload(device_map)
        self.is_sequential_parallel = devices.is_spread(device_map)
        place = next(self.pretrained_model.parameters()).device
        if self.is_sequential_parallel:
            lm_head = devices.lm_head_device(device_map, self.lm_head_namings)
            place = lm_head if self.is_encoder_decoder else devices.first_device(device_map)
            self.output_device = place
        elif place.type == "meta":
            return  # a model without memory: its weights come later
        self.v_head.to(place)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        within: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """One pass of the base model, and the value of every position of its (decoder's) input.

        Args:
            input_ids, attention_mask: (B, T).
            past_key_values: the cache of an earlier pass.
            return_past_key_values: whether this pass's cache comes as a fourth element.
            within: computed on this model in place of the pass, so that what wraps the model sees a pass.
            **kwargs: for the base model: `position_ids`, `labels` (then there is a loss), `decoder_input_ids`, ...

        Returns:
            Logits (B, T, V) in at least float32, the loss or None, values (B, T) in the head's dtype.
        """
        if within is not None:
            return within(self)
        kwargs.setdefault("use_cache", return_past_key_values)
        kwargs |= {"output_hidden_states": True, "return_dict": True}
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values
        output = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        wide = torch.promote_types(output.logits.dtype, torch.float32)
        logits, loss, hidden = output.logits.to(wide), output.loss, self._last_hidden_state(output)
        if self.is_sequential_parallel:
            logits, hidden = logits.to(self.output_device), hidden.to(self.output_device)
            loss = None if loss is None else loss.to(self.output_device)
        values = self.v_head(hidden).squeeze(-1)
        return (logits, loss, values, output.past_key_values) if return_past_key_values else (logits, loss, values)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's `generate`, without dropout; afterwards every module is in the mode it was in."""
        with evaluating(self.pretrained_model):
            return self.pretrained_model.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self.pretrained_model.prepare_inputs_for_generation(*args, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass; not reentrant unless asked for, so frozen inputs work."""
        self.pretrained_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        self.pretrained_model.gradient_checkpointing_disable()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        peft_config: Any = None,
        reward_adapter: Any = None,
        reward_adapter_name: str = "reward_adapter",
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A base model with its adapter, if any, and the value head that was saved with it, or a new one.

        Args:
            pretrained_model_name_or_path: a folder or a Hub name, of a model or of a trained adapter; or the model
                itself.
            peft_config: a PeftConfig, for a new adapter on the base model.
            reward_adapter: a folder or a Hub name of a reward adapter, for `compute_reward_score`.
            is_trainable: whether a trained adapter goes on training; else only the value head learns.
            **kwargs: those in `supported_args` go to the constructor, those of PEFT's
                `prepare_model_for_kbit_training` there (they count where a quantised model gets a new adapter), all
                others to `transformers_parent_class.from_pretrained`.

        Raises:
            ValueError: arguments of a wrong kind, a source that is no model, a reward adapter without a PEFT model, a
                saved head that is incomplete; and what the constructor raises.
            TypeError: arguments that would make another model, with one that is loaded already.
        """
        if cls.transformers_parent_class is None:
            raise TypeError(f"{cls.__name__} does not know what to load. Use one of its subclasses.")
        loading.check_adapters(peft_config, reward_adapter)
        own = {name: kwargs.pop(name) for name in cls.supported_args if name in kwargs}
        hub_keywords = loading.hub_keywords(kwargs)
        base = loading.load_base(
            cls.transformers_parent_class, pretrained_model_name_or_path, model_args, peft_config, is_trainable, kwargs
        )
        if reward_adapter is not None and not adapters.is_peft_model(base):
            raise ValueError(
                f"reward_adapter = {os.fspath(reward_adapter)!r} needs a policy with an adapter of its own, and "
                f"{type(base).__name__} has none. Give peft_config as well, or leave reward_adapter out."
            )
        model = cls(base, **own)
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            model._restore_head(pretrained_model_name_or_path, hub_keywords)
        else:
            model.post_init(base.state_dict())
        if reward_adapter is not None:
            token = hub_keywords.get("token")
            model.add_and_load_reward_modeling_adapter(reward_adapter, reward_adapter_name, token=token)
        return model

    def _restore_head(self, source: restore.Source, hub_keywords: dict[str, Any]) -> None:
        head = restore.read_head(source, hub_keywords)
        if not head:
            warn(restore.no_head_saved(source))
        self.v_head.fill_(head)
