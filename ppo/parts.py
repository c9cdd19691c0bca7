"""The parts of a step, which `ppo.trainer` calls in turn: inputs, forward pass, rewards, advantages, one update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppo.base import BaseTrainer
from ppo.checks import padding_token
from ppo.flat import plain
from ppo.forward import dropout_off, forward_in_chunks, with_positions
from ppo.inputs import decoder_inputs, encoder_decoder_inputs, response_mask, token_sequences
from ppo.kl import kl_penalty
from ppo.losses import statistics
from ppo.rewards import Rewards, compute_advantages, rewards_of


class Parts(BaseTrainer):
    """The parts of a step, each a method with the name, arguments and results of TRL's."""

    def _overrides(self, *names: str) -> bool:
        """Whether a subclass, or this object alone, has one of these methods of its own."""
        return any(name in vars(self) or getattr(type(self), name) is not vars(Parts)[name] for name in names)

    def shape_scores(self, scores: Tensor) -> Tensor:
        """Scores (B,) as rewards: scaled by their running deviation, clipped, as the config says."""
        if self.config.use_score_scaling:
            self.running.update(scores)
            scale = self.running.std + torch.finfo(scores.dtype).eps
            scores = (scores - self.running.mean) / scale if self.config.use_score_norm else scores / scale
        clip = self.config.score_clip
        return scores.clamp(-clip, clip) if clip else scores

    def prepare_model_inputs(self, queries: list[Tensor], responses: list[Tensor]) -> dict[str, Tensor]:
        """The inputs of the model, padded on the tokenizer's side; see `ppo.inputs`."""
        if self.data_collator is not self._padding:
            return self._collated(queries, responses)
        pad_id, side = padding_token(self.tokenizer, self._vocabulary), self.tokenizer.padding_side
        config = self.config
        widths = (config.pad_max_input_len, config.pad_max_len) if config.pad_for_acceleration else (None, None)
        if self.is_encoder_decoder:
            start = self._unwrapped.config.decoder_start_token_id
            inputs = encoder_decoder_inputs(queries, responses, pad_id, side, start, *widths)
        else:
            inputs = decoder_inputs(queries, responses, pad_id, side, widths[1])
        return with_positions(self._unwrapped, inputs)

    def _collated(self, queries: list[Tensor], responses: list[Tensor]) -> dict[str, Tensor]:
        """The same through the caller's own collator."""

        def collated(sequences: list[Tensor]) -> dict[str, Tensor]:
            rows = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in sequences]
            return {k: v.to(self.current_device) for k, v in dict(self.data_collator(rows)).items() if k != "labels"}

        if not self.is_encoder_decoder:
            both = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
            return with_positions(self._unwrapped, collated(both))
        return collated(queries) | {f"decoder_{name}": value for name, value in collated(responses).items()}

    def batched_forward_pass(
        self,
        model: Any,
        queries: list[Tensor],
        responses: list[Tensor],
        model_inputs: dict[str, Tensor],
        return_logits: bool = False,
        response_masks: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """`mini_batch_size` samples at a time: (log-probs, logits or None, values, mask), each T-1 wide.

        With gradients where torch's are on. Without them, if the model can compute flat (see `ppo.flat`), all is 0 at
        padding, and logits are 0 outside the mask.
        """
        mask = response_mask(model_inputs, queries, responses, response_masks)
        unwrapped: Any = self.accelerator.unwrap_model(model)
        gradients = torch.is_grad_enabled()
        options = (self.config.mini_batch_size, self.config.logit_temperature, return_logits)
        if not gradients and self._flat(model, model_inputs, queries, responses):
            samples, attended = token_sequences(queries, responses, response_masks), model_inputs["attention_mask"]
            with dropout_off(unwrapped):
                return *self.updates.flat.forward_in_chunks(model, samples, attended, mask, *options), mask
        with dropout_off(unwrapped, gradients and self.config.gradient_checkpointing):
            trim = not self.config.pad_for_acceleration
            return *forward_in_chunks(model, model_inputs, *options, trim=trim, gradients=gradients), mask

    def _flat(self, model: Any, inputs: dict[str, Tensor], queries: list[Tensor], responses: list[Tensor]) -> bool:
        """Whether a model computes flat what it would from padded inputs, of which a subclass may make others."""
        fixed = self.config.pad_for_acceleration
        return not fixed and self.updates.flat.why_padded(model) is None and plain(inputs, queries, responses)

    def compute_rewards(self, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor) -> Rewards:
        """(rewards, penalty, KL), each (B, T-1), at the coefficient in force; see `ppo.rewards`."""
        kl = [self._kl_penalty(own, other) for own, other in zip(logprobs, ref_logprobs, strict=True)]
        return rewards_of(scores, torch.stack(kl), masks, self.kl_ctl.value)

    def _kl_penalty(self, logprob: Tensor, ref_logprob: Tensor) -> Tensor:
        """The cost of each token of a sample, before the coefficient; see `ppo.kl`."""
        return kl_penalty(logprob, ref_logprob, self.config.kl_penalty)

    def compute_advantages(self, values: Tensor, rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(masked values, advantages whitened over all ranks, returns); see `ppo.rewards`."""
        config = self.config
        return compute_advantages(values, rewards, mask, config.gamma, config.lam, config.whiten_rewards, self._sum)

    def loss(
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logits: Tensor,
        vpreds: Tensor,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Of one mini-batch: (policy loss, vf_coef times value loss, flat statistics), means over masked tokens.

        Both losses are 0 where the mean ratio is above `ratio_threshold`.
        """
        # What was before the update is a target, also where it was computed with gradients.
        old_logprobs, values, advantages, returns = (x.detach() for x in (old_logprobs, values, advantages, returns))
        sums = self.updates.sums(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        inside, tokens, vf_coef = mask.bool(), sums.numbers[0].to(sums.policy.dtype), self.config.value_weight
        guarded = self.updates.guarded(sums.numbers)
        stats = {name: sums.numbers.new_tensor(value) for name, value in statistics(sums.numbers, vf_coef).items()}
        stats |= {"policy/advantages": advantages[inside], "policy/ratio": sums.ratio[inside]}
        stats["policy/skipped"] = sums.numbers.new_tensor(guarded)
        if guarded:  # not 0 times the loss, which may be infinite
            return 0.0 * logprobs[inside].sum(), 0.0 * vpreds[inside].sum(), stats
        return sums.policy / tokens, vf_coef * sums.value / tokens, stats

    def train_minibatch(
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logprobs: Tensor,
        logits: Tensor,
        vpreds: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> dict[str, Any]:
        """One update from one mini-batch whose forward pass (with gradients) is done; its statistics, those of `loss`.

        Mind the order of the arguments: `loss` has another one, as in TRL. Where the ratio guard fires on any rank
        nothing is updated, neither weights nor the optimizer's state. Within a step that accumulates, the last
        mini-batch makes the update.

        Raises:
            FloatingPointError: the loss is not a number.
        """
        policy, value, stats = self.loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        loss = policy + value
        if not self._overrides("loss"):  # a mean over tokens: each weighs the same on every rank
            own = mask.sum()
            loss = loss * own * self.accelerator.num_processes / self._sum(own.clone())
        self.updates.learn(loss, bool(stats.get("policy/skipped", False)))
        return stats

    def _early_stop(self, policykl: Tensor) -> bool:
        """Whether to leave out a step's further epochs, after one of this policykl (of all ranks)."""
        return self.config.early_stopping and float(policykl) > 1.5 * self.config.target_kl
