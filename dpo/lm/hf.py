"""Hugging Face causal language models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.attention import AttentionError, hugging_face_attention
from dpo.lm.batch import SequenceBatch
from dpo.lm.head import scoring_head_
from dpo.lm.judge import refuse_made_up
from dpo.lm.last_layer import compute_what_is_read_
from dpo.lm.model_config import read_config, with_older_keys
from dpo.lm.on_disk import on_disk, refuse_across_layers
from dpo.lm.quantized import device_here, quantization, with_gradients_
from dpo.lm.rope import row_by_row_
from dpo.lm.sampling import Answering
from dpo.lm.sequences import before_end

if TYPE_CHECKING:
    from dpo.lm.adapters import Adapted

SHARED = "shared_prefix"  # our name among the attention implementations of transformers


class HuggingFaceModel(Answering):
    row_each = False  # the shared layout is one row of groups

    def __init__(self, network: PreTrainedModel, adapted: Adapted | None = None):
        """`adapted` is the adapter on the network, if there is one."""
        super().__init__()
        AttentionInterface.register(SHARED, hugging_face_attention)
        self.network = network
        self.own_attention: str = network.config._attn_implementation or "eager"
        self._settings: dict[str, list[tuple[Any, str | None]]] = {}  # the attention of each config inside
        self.adapted = adapted
        head = network.get_output_embeddings()
        for each in [head] if adapted is None else adapted.heads(head):
            scoring_head_(each)
        compute_what_is_read_(network.base_model)
        self._rotary = row_by_row_(network)

    @classmethod
    def load(
        cls,
        folder: Path,
        _config: dict[str, Any],
        dtype: torch.dtype,
        _gathered: Any = None,
        worn: Worn = ALONE,
    ) -> HuggingFaceModel:
        """Load a folder through the library's own loader, which gathers by itself; every dropout is set to 0.

        Args:
            worn: an adapter, and how the weights are quantized.
        """
        config = without_dropout(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        options = {} if worn.quantize == "none" else quantization(worn.quantize, dtype) | device_here()
        return wearing(load_network(folder, config, dtype, **options), dtype, worn)

    @classmethod
    def random(cls, config: dict[str, Any], seed: int) -> HuggingFaceModel:
        """A randomly initialised model, for trials; `config` holds `model_type` and that type's fields."""
        kind, fields = config["model_type"], {k: v for k, v in config.items() if k != "model_type"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AutoModelForCausalLM.from_config(without_dropout(AutoConfig.for_model(kind, **fields)))
        return cls(network)

    @staticmethod
    def why_unshared(config: dict[str, Any]) -> str | None:
        """The entry of a config.json that forbids sharing a prompt between its completions; None if there is none."""
        if "model_type" not in config:
            return "its config.json has no model_type"
        try:
            whole = AutoConfig.for_model(**config)
            kind: Any = AutoModelForCausalLM._model_mapping[type(whole)]
        except (KeyError, ValueError):
            return f"the model type {config['model_type']!r} is no causal language model of this transformers"
        read = whole.get_text_config()
        for name in NOT_SHARED:
            value = getattr(read, name, None)
            if value and getattr(read, f"use_{name}", True):
                return f"{name} = {value}"
        layers = sorted({str(t) for t in getattr(read, "layer_types", None) or []} - {"full_attention"})
        if layers:
            return f"layer_types has {', '.join(layers)}"
        rope = getattr(read, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):
            return f"rope_type = {rope['rope_type']!r} changes with the length"
        if not kind._supports_attention_backend:
            return f"{kind.__name__} has an attention of its own"
        return None

    def forward(self, input_ids: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
        """[N, T] ids, padded on the right -> logits [N, T, V]. No mask: a causal model never looks right.

        Args:
            lengths: of each row, without padding; None: there is none.
        """
        self._attend(self.own_attention)
        with self._row_by_row(lengths):
            return self.network(input_ids=input_ids, use_cache=False).logits

    def hidden(self, batch: SequenceBatch) -> Tensor:
        """The head's input: [R, T, d], in either layout; correct only at `batch.sources`.

        Raises:
            AttentionError: the model cannot be asked for it in this layout.
        """
        if self.network.base_model is self.network:
            raise AttentionError(f"{type(self.network).__name__} has no part that ends before its head")
        if batch.groups is None:
            self._attend(self.own_attention)
            with self._row_by_row(batch.lengths):
                return self.network.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        self._attend(SHARED)
        layout: dict[str, Any] = {"segments": batch.segments, "read": batch.read}
        return self.network.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **layout
        ).last_hidden_state

    @property
    def plain_head(self) -> bool:
        """Whether the logits are the head's own, not capped or scaled behind it."""
        return has_plain_head(self.network.config)

    def head(self) -> Any:
        head = self.network.get_output_embeddings()
        return head if self.adapted is None else self.adapted.active(head)

    def checkpoint_activations(self) -> None:
        """Keep no activations inside the layers; the backward pass computes them again."""
        self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def restore_attention(self) -> None:
        """Set the network's own attention again, which those need who call the network beside this module."""
        self._attend(self.own_attention)

    def recompute_in_evaluation(self) -> None:
        """Let the layers compute activations again also in evaluation mode, where the library would keep them all."""
        for module in self.network.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # of this module alone: those inside it stay in evaluation mode

    def _row_by_row(self, lengths: tuple[int, ...] | None) -> AbstractContextManager[None]:
        return nullcontext() if self._rotary is None else self._rotary.of(lengths)

    def _attend(self, implementation: str) -> None:
        if self.network.config._attn_implementation == implementation:
            return
        if implementation not in self._settings:
            self.network.set_attn_implementation(implementation)  # it looks at installed packages, for milliseconds
            inside = [part.config for part in self.network.modules() if isinstance(part, PreTrainedModel)]
            self._settings[implementation] = [(config, config._attn_implementation) for config in inside]
        for config, chosen in self._settings[implementation]:
            config._attn_implementation = chosen

    @torch.no_grad()
    def continuations(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int,
        pad_id: int,
        temperature: float = 0.0,
        agreed: Callable[[bool], bool] | None = None,
    ) -> list[list[int]]:
        """Continue the prompts by the library, which itself asks all ranks whether they are done."""
        if self._rotary is not None and len(prompts) > 1:  # its answers depend on the longest prompt beside them
            alone = (max_new_tokens, eos_id, pad_id, temperature, agreed)
            return [self.continuations([prompt], *alone)[0] for prompt in prompts]
        self._attend(self.own_attention)  # prompts are padded on the left, which needs a mask
        length = max(map(len, prompts))
        device = next(self.network.parameters()).device
        ids = torch.tensor([[pad_id] * (length - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
        whole = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}  # the model's own chances, none cut off
        drawn = {"temperature": temperature, **whole} if temperature else {}
        # What is left unset here comes from the model's own generation_config, whose penalties are not greedy.
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=eos_id,
            pad_token_id=pad_id,
            **drawn,
        )
        generate: Any = self.network.generate
        synced = None if agreed is None else True
        out = generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=synced)
        return [before_end(row, eos_id) for row in out[:, length:].tolist()]

    def on_disk(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Turn tensors of the network into those of the library's files, where a type has them otherwise in memory."""
        return on_disk(self.network, tensors)

    def refuse_unwritable(self) -> None:
        """Raise a ModelError if the trained weights could not be written as the network is divided among ranks."""
        refuse_across_layers(self.network)

    def write_config(self, folder: Path) -> None:
        """Write `config.json` (and `generation_config.json` where the model can generate)."""
        self.network.config.save_pretrained(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(with_older_keys(read_config(folder)), indent=2) + "\n", encoding="utf-8")
        if self.network.generation_config is not None:
            self.network.generation_config.save_pretrained(folder)


def wearing(network: PreTrainedModel, dtype: torch.dtype, worn: Worn) -> HuggingFaceModel:
    """A network with its adapter put on, so that all that is done to it here sees its final modules."""
    if worn.adapter is None:
        return HuggingFaceModel(network)
    from dpo.lm.adapters import put_on  # with peft, which others do without

    return HuggingFaceModel(network, put_on(network, Path(worn.adapter), dtype))


def load_network(folder: Path, config: Any, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Load a folder's weights through the library's own loader, all of them and nothing else.

    Raises:
        ModelError: tensors are missing, left over or of another shape.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        **options,
    )
    network, found = loaded
    if "quantization_config" in options:
        with_gradients_(network)
    refuse_made_up(folder, found)
    for parameter in network.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            # The library keeps some routers in float32. DeepSpeed trains all parameters in one dtype, so a reference
            # that kept them would be another function than the policy. (Buffers are kept in both.)
            parameter.data = parameter.data.to(dtype)
    return network


def without_dropout(config: Any) -> Any:
    """Set every dropout probability of a config to 0: policy and reference must be the same function at the start."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def has_plain_head(config: Any) -> bool:
    """Whether a model's logits are its head's own, not capped or scaled behind it."""
    return all(getattr(config.get_text_config(), name, None) in (None, 1.0) for name in BEHIND_THE_HEAD)


# Entries of a config that change logits behind the head.
BEHIND_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
# Entries of a config that make a token see something else than what stands before it in its own sequence.
NOT_SHARED = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping", "use_alibi", "alibi")
