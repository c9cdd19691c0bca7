"""The flat forward pass: log-probs, values and entropy of the scored tokens alone, in the layout of `dpo.lm.batch`.

Answers of one prompt compute it once, nothing is padded, and only rows that predict a scored token get logits. What
predicts a token also is what is valued there, so both heads read the same hidden states. Models that cannot do this
keep the padded pass of `ppo.forward`; each is asked once, by numbers. S tokens are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo.lm.attention import AttentionError
from dpo.lm.batch import SequenceBatch, collate_shared, same_prompt
from dpo.lm.hf import HuggingFaceModel, has_plain_head
from dpo.lm.logprobs import head_logps, read
from dpo.lm.models import Model
from dpo.lm.products import is_narrow
from dpo.lm.sequences import TokenSequence
from dpo.lm.trial import NOT_THE_SAME, close, trial_sequences
from dpo.lm.x_transformers import XTransformersModel
from ppo.checks import ValueModel, vocabulary
from ppo.forward import Outputs, dropout_off, forward, with_positions
from ppo.inputs import decoder_inputs, positions, response_mask
from ppo.models.wrapper import PreTrainedModelWrapper
from ppo.models.x_transformers import XTransformersWithValueHead
from ppo.statistics import Reduce, alone


class Scored(NamedTuple):
    """The outputs for the S scored tokens, sample after sample."""

    logprobs: Tensor  # [S], at least float32
    values: Tensor  # [S]
    entropy: Tensor | None = None  # [S], without gradient
    logits: Tensor | None = None  # [K, V] of the K tokens for which they are asked


class FlatForward:
    """The flat passes of a trainer's models, and for each model whether it has one."""

    def __init__(self, accelerator: Accelerator, reduce: Reduce = alone):
        self.accelerator, self.reduce = accelerator, reduce
        # By the identity of the bare model, which is kept so that no other can take its number.
        self._known: dict[int, tuple[ValueModel, Model | None, str | None]] = {}

    def why_padded(self, model: Any) -> str | None:
        """The reason why a model, or what wraps it, keeps the padded pass; None where the flat pass serves it.

        Every rank asks at the same point: the first time, the two passes are compared on a few tokens.
        """
        bare: Any = self.accelerator.unwrap_model(model)
        if id(bare) not in self._known:
            reason = _reason(bare, self.accelerator.distributed_type == DistributedType.DEEPSPEED)
            self._known[id(bare)] = (bare, None if reason else language_model(bare), reason)
            if reason is None and not self._agrees(model, bare):
                self._known[id(bare)] = (bare, None, NOT_THE_SAME)
        return self._known[id(bare)][2]

    def scored(
        self,
        model: Any,
        sequences: Sequence[TokenSequence],
        temperature: float = 1.0,
        entropy: bool = False,
        whole: bool = False,
        logits: Tensor | None = None,
    ) -> Scored:
        """One pass of a model, or of what wraps it, over samples.

        Args:
            entropy: whether it is asked for.
            whole: score every token behind the first, those of the queries too.
            logits: [S] bool, the scored tokens whose logits are asked for; None: those of no token.

        Raises:
            AttentionError: the model's attention cannot share a prompt; `why_padded` tells before.
        """
        bare: Any = self.accelerator.unwrap_model(model)
        language = self._known[id(bare)][1]
        assert language is not None, "ask why_padded first"
        place = next(bare.parameters()).device
        batch = collate_shared(sequences, 0, language.row_each, whole=whole).to(place)
        # What wraps the model has to see a forward pass, or it would not gather weights or gradients.
        return model(within=lambda whole: _scored(whole, language, batch, temperature, entropy, logits))

    def forward(self, model: Any, sequences: Sequence[TokenSequence], mask: Tensor, temperature: float) -> Outputs:
        """The flat counterpart of `ppo.forward.forward`: (B, T-1) as `mask`, with 0 outside it; entropy for logits."""
        found = self.scored(model, sequences, temperature, entropy=True)
        assert found.entropy is not None
        return Outputs(spread(found.logprobs, mask), None, spread(found.values, mask), spread(found.entropy, mask))

    def forward_in_chunks(
        self,
        model: Any,
        sequences: Sequence[TokenSequence],
        attended: Tensor,
        mask: Tensor,
        size: int,
        temperature: float = 1.0,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The flat counterpart of `ppo.forward.forward_in_chunks`: so many samples at a time, by prompt.

        Log-probs, logits where asked for, values: of every token that is `attended`, (B, T), and not the first, for the
        statistics hold those of queries too; of logits only those inside `mask`, (B, T-1). Elsewhere all is 0.
        """
        attended = (attended[:, 1:] * attended[:, :-1]).bool()
        order = [row for rows in same_prompt(sequences) for row in rows]
        parts: list[list[Tensor]] = []
        with torch.no_grad():
            for start in range(0, len(order), size):
                at = order[start : start + size]
                kept = mask[at].bool()[attended[at]] if return_logits else None
                found = self.scored(model, [sequences[i] for i in at], temperature, whole=True, logits=kept)
                part = [spread(found.logprobs, attended[at]), spread(found.values, attended[at])]
                parts.append(part if found.logits is None else [*part, spread(found.logits, mask[at])])
        back = torch.tensor(order).argsort().to(mask.device)
        logprobs, values, *logits = (torch.cat(column)[back] for column in zip(*parts, strict=True))
        return logprobs, logits[0] if logits else None, values

    def restore_attention(self) -> None:
        """Give networks their own attention back, which checkpointed layers had to forgo until the backward pass."""
        for _, language, _ in self._known.values():
            if language is not None:
                language.restore_attention()

    def _agrees(self, model: Any, bare: ValueModel) -> bool:
        """Whether log-probs and values of a few samples are those of the padded pass, on every rank."""
        sequences = trial_sequences(vocabulary(bare))
        place = next(bare.parameters()).device
        queries, responses = (
            [torch.tensor(s[part], device=place) for s in sequences] for part in (0, 1)
        )  # prompt and completion
        inputs = decoder_inputs(queries, responses, 0, "right")
        inside = response_mask(inputs, queries, responses).bool()
        with torch.no_grad(), dropout_off(bare):
            expected = forward(model, with_positions(bare, inputs))
            try:
                found = self.scored(model, sequences)
            except AttentionError:
                return False
        narrow = is_narrow(next(bare.parameters()).dtype) or self.accelerator.mixed_precision in ("fp16", "bf16")
        pairs = ((found.logprobs, expected.logprobs), (found.values, expected.values))
        agree = all(close(one.float(), other[inside].float(), narrow) for one, other in pairs)
        return float(self.reduce(torch.tensor(float(not agree), device=place))) == 0


def _scored(
    model: ValueModel, language: Model, batch: SequenceBatch, temperature: float, entropy: bool, logits: Tensor | None
) -> Scored:
    """The outputs of a bare model for a batch in the shared layout."""
    try:
        hidden, batch = read(language, batch)
        head, scale = language.head(), 1 / temperature
        values = model.v_head(hidden).squeeze(-1)[batch.scored]
        logps = head_logps(head, hidden, batch.targets, entropy=entropy, scale=scale)
        asked = None if logits is None else _wide(head(hidden[batch.scored[logits]])) * scale
    finally:
        if not (torch.is_grad_enabled() and _checkpointed(model)):
            language.restore_attention()
    spread_out = None if logps.entropy is None else logps.entropy[batch.scored]
    return Scored(logps.logps[batch.scored], values, spread_out, asked)


def plain(inputs: dict[str, Tensor], queries: Sequence[Tensor], responses: Sequence[Tensor]) -> bool:
    """Whether model inputs are each query with its response behind it, at the usual positions, and nothing else."""
    if not inputs.keys() <= {"input_ids", "attention_mask", "position_ids"}:
        return False
    attended = inputs["attention_mask"].bool()
    usual = positions(inputs["attention_mask"])
    tokens = torch.cat([part for pair in zip(queries, responses, strict=True) for part in pair])
    given = inputs["input_ids"][attended], inputs.get("position_ids", usual)[attended]
    return torch.equal(given[0], tokens.to(given[0])) and torch.equal(given[1], usual[attended])


def spread(scored: Tensor, mask: Tensor) -> Tensor:
    """[S, ...] numbers of scored tokens -> (B, T-1, ...), 0 outside the mask."""
    out = scored.new_zeros(*mask.shape, *scored.shape[1:])
    inside = mask.bool().view(*mask.shape, *(1,) * (scored.dim() - 1))
    return out.masked_scatter(inside.expand_as(out), scored)


def language_model(model: ValueModel) -> Model:
    """The network of a value model, behind the interface of `dpo.lm.models`."""
    if isinstance(model, XTransformersWithValueHead):
        assert model.description is not None, "why_padded tells before"
        return XTransformersModel(model.description, model.pretrained_model)
    base: Any = model.pretrained_model
    return HuggingFaceModel(base.get_base_model() if model.is_peft_model else base)


def _reason(model: ValueModel, deepspeed: bool) -> str | None:
    """The reason of a bare model against the flat pass; DeepSpeed hangs hooks of its own into every module."""
    if model.is_encoder_decoder:
        return "an encoder-decoder has no prompt to share"
    if type(model).forward not in (PreTrainedModelWrapper.forward, XTransformersWithValueHead.forward):
        return f"{type(model).__name__} has a forward pass of its own"
    if model.is_sequential_parallel:
        return "the model is spread over several devices"
    if isinstance(model, XTransformersWithValueHead):
        if model.description is None:
            return "the network came without its description"
        return XTransformersModel.why_unshared(model.description)
    hooked = model.pretrained_model.get_output_embeddings()._forward_hooks and not deepspeed
    if hooked or not has_plain_head(model.config):
        return "something changes the logits behind the head"
    return HuggingFaceModel.why_unshared(model.config.to_dict())


def _checkpointed(model: ValueModel) -> bool:
    """Whether layers compute their activations again in the backward pass, with the attention that is then set."""
    return any(part.gradient_checkpointing for part in model.modules() if isinstance(part, GradientCheckpointingLayer))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
