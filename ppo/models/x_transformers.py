"""A TransformerWrapper of x-transformers with a value head: the interface of the Hugging Face wrappers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from x_transformers import TransformerWrapper

from dpo.lm.model_config import is_x_transformers, read_config
from dpo.lm.sampling import Sampling, check_prompts, end_tokens, left_padding
from dpo.lm.tied import own_tied_head_
from dpo.lm.weights import canonical_tensors, write_weights
from dpo.lm.x_transformers import XTransformersModel, continued
from ppo.models.restore import no_head_saved, of_head, read_head
from ppo.models.value_head import ValueHead
from ppo.said import warn

HEAD = "pytorch_model.bin"  # beside the network's model.safetensors, which holds the network's own names alone


@dataclass(frozen=True)
class XTransformersConfig:
    """The fields of a configuration that code for Hugging Face models asks for."""

    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    model_type: str = "x-transformers"
    is_encoder_decoder: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class XTransformersWithValueHead(nn.Module):
    """A causal network of x-transformers with a value head; to be saved as a folder it needs its `description`."""

    is_encoder_decoder: ClassVar[bool] = False
    is_peft_model: ClassVar[bool] = False
    is_sequential_parallel: ClassVar[bool] = False

    def __init__(
        self,
        network: TransformerWrapper,
        summary_dropout_prob: float | None = 0.0,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
        description: Mapping[str, Any] | None = None,
    ):
        """Put a new value head on a causal network with one output head.

        Args:
            network: its tied output head, if it has one, is made its own, so that copies are whole.
            summary_dropout_prob, v_head_init_strategy, v_head_initializer_range: as for ValueHead.
            description: the fields from which `dpo` builds the network (`num_tokens`, `dim`, `depth`, ...; see
                XTransformersModel): what `save_pretrained` writes as config.json. A network does not know them.

        Raises:
            ValueError: the network is not causal, or has not one hidden state and one output for each position.
        """
        super().__init__()
        _check(network)
        own_tied_head_(network)
        self.pretrained_model = network
        self.config = XTransformersConfig(network.attn_layers.dim, network.num_tokens, network.max_seq_len)
        self.v_head = ValueHead(self.config, summary_dropout_prob)
        self.v_head.init_weights_(v_head_init_strategy, v_head_initializer_range)
        self.v_head.to(next(network.parameters()).device)
        self.training = network.training
        self.v_head.train(self.training)
        self.description = None if description is None else _whole_description(description)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        labels: Tensor | None = None,
        within: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Logits and values of every position, from one pass.

        Positions count from the first real token of a row. At padding the numbers are finite and mean nothing.

        Args:
            input_ids: (B, T); with `past_key_values`, the one next token of each row, (B, 1).
            past_key_values: what an earlier pass gave as its fourth element.
            attention_mask: (B, T), 1 on real tokens, padding on either side; with `past_key_values`, of the earlier
                tokens as well.
            labels: (B, T), the input ids with -100 where nothing is to be predicted.
            within: computed on this model in place of the pass, so that what wraps the model sees a pass.

        Returns:
            Logits (B, T, V) in at least float32, the mean cross-entropy of `labels` or None, values (B, T) in the
            head's dtype; and the cache, if asked for.

        Raises:
            ValueError: a mask that does not fit, has holes or leaves a row empty; more than one token after a cache.
        """
        if within is not None:
            return within(self)
        if input_ids is None:
            raise ValueError("input_ids is None: give the tokens, (B, T)")
        if past_key_values is not None and input_ids.shape[1] != 1:
            raise ValueError(
                f"input_ids is {tuple(input_ids.shape)}; with past_key_values it has to be (B, 1), the next token of "
                "each row. Feed the tokens one by one, or all at once without past_key_values."
            )
        start = None
        if attention_mask is not None:
            rows, width = input_ids.shape
            past = 0 if past_key_values is None else past_key_values.cache_length
            # Not the library's `mask`: it hides left padding and goes on counting absolute positions from it. Padding
            # on the right needs nothing, for a causal network never looks there.
            start = left_padding(attention_mask, (rows, past + width))
            start = start if start.any() else None
        (logits, hidden), cache = self.pretrained_model(
            input_ids,
            return_logits_and_embeddings=True,
            return_intermediates=True,
            seq_start_pos=start,
            cache=past_key_values,
            input_not_include_cache=past_key_values is not None,
        )
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits, values = logits.to(wide), self.v_head(hidden).squeeze(-1)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return (logits, loss, values, cache) if return_past_key_values else (logits, loss, values)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 20,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue prompts, without dropout. As it stands, samples come from the network's own distribution, all of it.

        Args:
            input_ids: (B, T) prompts, padded on the left.
            attention_mask: (B, T), 1 on real tokens; None: all are.
            eos_token_id: the token, or tokens, after which a row is over.
            pad_token_id: what fills a row that is over; needed with `eos_token_id`.
            do_sample: False takes the likeliest token each time.
            temperature: what logits are divided by.
            top_k: how many tokens may be sampled; 0: all.
            top_p: how much of the probability may be sampled, likeliest first; 1: all.
            generator: where the random numbers come from; None: torch's global one.

        Returns:
            (B, T + new) the prompts and what follows; new is below `max_new_tokens` if all rows are over before.

        Raises:
            ValueError: prompts padded on the right, more tokens than positions, or settings that cannot be.
        """
        sampling, ends = Sampling(do_sample, temperature, top_k, top_p), end_tokens(eos_token_id, pad_token_id)
        network = self.pretrained_model
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        check_prompts(mask, max_new_tokens, None if network.can_cache_kv_outside_max_seq_len else network.max_seq_len)
        padding = left_padding(mask, (input_ids.shape[0], input_ids.shape[1]))
        return continued(network, input_ids, padding, max_new_tokens, sampling, ends, pad_token_id, generator)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
    ) -> None:
        """Write the network as a model folder of `dpo.lm.models`, and the head beside it as `pytorch_model.bin`.

        Args:
            state_dict: all weights under this module's names, where this process does not hold them whole.

        Raises:
            ValueError: the network came without its description.
        """
        if self.description is None:
            raise ValueError(
                "This network came without its description, and config.json is written from that. Give description= "
                "with the fields of an x-transformers config.json, or keep state_dict() and build the network in code."
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        given = self.state_dict() if state_dict is None else state_dict
        names = [name for name, _ in canonical_tensors(self.pretrained_model)]
        write_weights(folder, ((name, given[f"pretrained_model.{name}"]) for name in names))
        head = {f"v_head.{name}": tensor.detach().cpu() for name, tensor in of_head(given).items()}
        if head:
            torch.save(head, folder / HEAD)
        (folder / "config.json").write_text(json.dumps(self.description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> XTransformersWithValueHead:
        """Load a model folder of `dpo.lm.models` (no dropout in it), and the head saved beside it, or a new one.

        Args:
            dtype: of the network; the head is float32.
            **kwargs: `summary_dropout_prob`, `v_head_init_strategy`, `v_head_initializer_range`.

        Raises:
            ValueError: the folder holds no x-transformers model, or weights that do not fit.
        """
        description = read_description(folder, "AutoModelForCausalLMWithValueHead")
        network = XTransformersModel.load(Path(folder), description, dtype).network
        model = cls(network, description=description, **kwargs)
        head = read_head(folder, {})
        if not head:
            warn(no_head_saved(folder))
        model.v_head.fill_(head)
        return model


def read_description(folder: str | os.PathLike[str], others: str) -> dict[str, Any]:
    """Read the description of a network of x-transformers.

    Args:
        others: the class that loads models of other kinds.

    Raises:
        ValueError: the folder holds no x-transformers model.
    """
    description = read_config(Path(folder))
    if not is_x_transformers(description):
        raise ValueError(
            f"{os.fspath(folder)!r} has a model of type {description.get('model_type')!r} and not x-transformers. "
            f"Load it with {others}."
        )
    return description


def _whole_description(description: Mapping[str, Any]) -> dict[str, Any]:
    needed = ("num_tokens", "max_seq_len", "dim", "depth", "heads", "positions")
    missing = [name for name in needed if name not in description]
    if missing:
        raise ValueError(f"description lacks {', '.join(missing)}; it has {', '.join(description)}.")
    return {"model_type": "x-transformers", "decoder": {}, "wrapper": {}, **description}


def _check(network: Any) -> None:
    """Raise ValueError unless each position has one hidden state, one row of logits, and nothing from its right."""
    if not isinstance(network, TransformerWrapper):
        raise ValueError(
            f"XTransformersWithValueHead needs a TransformerWrapper, and {type(network).__name__} is none. Give the "
            "inner network of an AutoregressiveWrapper; a Hugging Face model has a wrapper of its own."
        )
    faults = {
        "an encoder": not network.attn_layers.causal,
        "return_only_embed": network.to_logits is None,
        "several output heads": network.has_multiple_heads,
        "mixture_of_softmax": network.to_mixture is not None,
        "a cls token": network.cls_token is not None,
        "average_pool_embed": network.average_pool_embed,
        "recycling": network.recycling,
        "looped": network.looped,
    }
    found = [name for name, there in faults.items() if there]
    if found:
        raise ValueError(
            f"This TransformerWrapper has {', '.join(found)}, and a value head needs a causal network (Decoder) with "
            "one hidden state and one row of logits for each position. Build it without."
        )
