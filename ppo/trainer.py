"""PPOTrainer: one policy with a value head, a frozen reference, scores from outside, clipped updates.

The caller generates and scores; `step` does the rest. The class has the signature of TRL's and Intel's, up to TRL 0.11.
Where it differs from them, the docstring beside the line says so. It runs on one process, on several
(`torchrun`, `accelerate launch`), and over DeepSpeed at any ZeRO stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppo import generation, report, tracking
from ppo.base import BaseTrainer
from ppo.checks import position_limit
from ppo.estimators import estimate, without_values
from ppo.forward import dropout_off, forward_in_chunks, with_positions
from ppo.given import check_finite, check_lengths, checked_step, habits
from ppo.inputs import decoder_inputs, encoder_decoder_inputs, response_mask
from ppo.losses import logprobs_from_logits, statistics
from ppo.rewards import Rewards, compute_advantages, compute_rewards
from ppo.said import warn
from ppo.tracking import timed
from ppo.update import Batch


class PPOTrainer(BaseTrainer):
    """The arguments are TRL's.

    Args:
        config: see PPOConfig.
        model: the policy, a value-head model of `ppo.models`; with `advantage_estimator` "rloo" or "grpo" also a plain
            model of transformers, PEFT or x-transformers, which gets no value head.
        ref_model: the reference, such a model too; it is frozen. None: a frozen copy of `model` (with
            `num_shared_layers`, sharing its first layers), which ZeRO-3 cannot make; with adapters, `model` itself
            with the adapters disabled.
        tokenizer: of transformers, with a padding token; also says where to pad and what ends a response.
        dataset, data_collator: make `dataloader`, shuffled batches of `batch_size` samples; None: no loader.
        optimizer: over `model.parameters()`; None: torch's Adam at `config.learning_rate`.
        lr_scheduler: of that optimizer, stepped once a step.

    Raises:
        ValueError: an argument of a wrong type; a tokenizer without padding token.
    """

    # A step, in the order of what it does

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: Sequence[Tensor | float],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """One batch: `ppo_epochs` times through it, then the KL coefficient and the learning rate; the statistics.

        `queries`, `responses`: tensors (length,) of token ids, without padding; `scores`: one number each;
        `response_masks`: 0 for the tokens of a response that the policy did not write. Log-probs, values and
        advantages of the batch are computed here, before the first update. Dropout is off throughout (TRL leaves the
        policy in training mode, so that it samples with dropout).

        Statistics, under TRL's names: `objective/kl` is a sum over the tokens of a response in nats, averaged over
        responses (`objective/kl_k1`: of the plain log-ratio, whatever `kl_penalty` is); `ppo/mean_non_score_reward`,
        losses and `ppo/policy/...` are means a token; `ppo/policy/skipped` counts mini-batches that the ratio guard
        left out; `time/ppo/...` are seconds. With `advantage_estimator` "rloo" or "grpo" there are none of values
        (`ppo/val/...`, `ppo/returns/...`, `ppo/loss/value`), and every query needs at least two responses.

        Raises:
            ValueError: a wrong number of items, shape or length; an empty response; the message names the item.
            FloatingPointError: a loss is not a number.
        """
        started = time.perf_counter()
        seconds: dict[str, float] = {}
        given = (queries, responses, scores, response_masks)
        raw = checked_step(self.config.batch_size, *given, self._vocabulary, self.is_encoder_decoder)
        queries, responses = ([t.to(self.device) for t in items] for items in (queries, responses))
        inputs = self.prepare_model_inputs(queries, responses)
        check_lengths(inputs, position_limit(self._unwrapped))
        self._look_for_habits(queries, responses)
        shaped = self.shape_scores(raw.to(self.device))
        with timed(seconds, "forward_pass"):
            full = self.config.kl_penalty == "full"
            logprobs, logits, values, masks = self.batched_forward_pass(
                self.model, queries, responses, inputs, full, response_masks
            )
            with self.reference() as reference:
                ref_logprobs, ref_logits, *_ = self.batched_forward_pass(reference, queries, responses, inputs, full)
            check_finite(logprobs, ref_logprobs, values, masks)
        with timed(seconds, "compute_rewards"):
            own, other = logprobs, ref_logprobs
            if logits is not None and ref_logits is not None:
                own, other = (logprobs_from_logits(x, None, gather=False) for x in (logits, ref_logits))
            rewards = self.compute_rewards(shaped, own, other, masks)
        with timed(seconds, "compute_advantages"):
            if self.config.advantage_estimator == "gae":
                values, advantages, returns = self.compute_advantages(values, rewards.rewards, masks)
            else:
                values, advantages, returns = estimate(self.config, queries, rewards.rewards, masks, self._sum)
        with timed(seconds, "optimize_step"), dropout_off(self._unwrapped, self.config.gradient_checkpointing):
            batch = Batch(inputs, masks, logprobs, values, advantages, returns)
            train_stats = self.updates.run(batch)
        with timed(seconds, "calc_stats"):
            texts = {"queries": queries, "responses": responses}
            measured = {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "non_score_reward": rewards.non_score}
            measured |= {"masks": masks, "scores": shaped, "kls": rewards.kl, "train_stats": train_stats}
            stats = self.record_step_stats(self.kl_ctl.value, **measured, **texts)
        return self._finished(stats, seconds, started)

    def _finished(self, stats: dict[str, Any], seconds: dict[str, float], started: float) -> dict[str, Any]:
        """Move the coefficient and the learning rate; what is logged is what was in force."""
        if self.config.advantage_estimator != "gae":
            stats = without_values(stats)
        stats["ppo/learning_rate"] = self.engine.learning_rate
        self.kl_ctl.update(stats["objective/kl"], self.config.batch_size * self.accelerator.num_processes)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.current_step += 1
        if stats["objective/kl"] < -1:
            warn(
                f"the KL to the reference is {stats['objective/kl']:.2f}, which no KL can be: responses are sampled "
                "from another distribution than the policy's (top_k, top_p, a minimal length, a temperature)"
            )
        self._keep_best(stats["ppo/mean_scores"])
        if self.config.optimize_device_cache and self.device.type == "cuda":
            torch.cuda.empty_cache()
        seconds["total"] = time.perf_counter() - started
        return stats | self.gather_stats({f"time/ppo/{name}": value for name, value in seconds.items()})

    def _keep_best(self, score: float) -> None:
        options = self.config.push_to_hub_if_best_kwargs
        if options and self.current_step % self.config.compare_steps == 0 and score > self.highest_score:
            try:
                self.push_to_hub(**options)
                self.highest_score = score
            except ConnectionError as error:
                warn(f"the best policy so far stays here: {error}")

    def _look_for_habits(self, queries: list[Tensor], responses: list[Tensor]) -> None:
        ends = generation.end_ids(self._unwrapped, self.tokenizer, {})
        for phrase in habits(queries, responses, self.tokenizer.pad_token_id, ends, self.is_encoder_decoder):
            self._warn_once(phrase)

    def shape_scores(self, scores: Tensor) -> Tensor:
        """Scores (B,) as rewards: scaled by their running deviation, clipped, as the config says."""
        if self.config.use_score_scaling:
            self.running.update(scores)
            scale = self.running.std + torch.finfo(scores.dtype).eps
            scores = (scores - self.running.mean) / scale if self.config.use_score_norm else scores / scale
        clip = self.config.score_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def prepare_model_inputs(self, queries: list[Tensor], responses: list[Tensor]) -> dict[str, Tensor]:
        """What the model is given, padded on the tokenizer's side; see `ppo.inputs`."""
        pad_id, side, config = self.tokenizer.pad_token_id, self.tokenizer.padding_side, self.config
        widths = (config.pad_max_input_len, config.pad_max_len) if config.pad_for_acceleration else (None, None)
        if self.is_encoder_decoder:
            start = self._unwrapped.config.decoder_start_token_id
            inputs = encoder_decoder_inputs(queries, responses, pad_id, side, start, *widths)
        else:
            inputs = decoder_inputs(queries, responses, pad_id, side, widths[1])
        return with_positions(self._unwrapped, inputs)

    def batched_forward_pass(
        self,
        model: Any,
        queries: list[Tensor],
        responses: list[Tensor],
        model_inputs: dict[str, Tensor],
        return_logits: bool = False,
        response_masks: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """`mini_batch_size` samples at a time: (log-probs, logits or None, values, mask), each T-1 wide."""
        unwrapped: Any = self.accelerator.unwrap_model(model)
        with dropout_off(unwrapped):
            logprobs, logits, values = forward_in_chunks(
                model,
                model_inputs,
                self.config.mini_batch_size,
                self.config.logit_temperature,
                return_logits,
                trim=not self.config.pad_for_acceleration,
            )
        return logprobs, logits, values, response_mask(model_inputs, queries, responses, response_masks)

    def compute_rewards(self, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor) -> Rewards:
        """(rewards, penalty, KL), each (B, T-1), at the coefficient in force; see `ppo.rewards`."""
        return compute_rewards(scores, logprobs, ref_logprobs, masks, self.kl_ctl.value, self.config.kl_penalty)

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
        sums = self.updates.sums(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        tokens, vf_coef = sums.numbers[0].to(sums.policy.dtype), self.config.value_weight
        stats = statistics(sums.numbers, vf_coef)
        stats |= {"policy/advantages": advantages[mask.bool()].detach(), "policy/ratio": sums.ratio[mask.bool()]}
        if self.updates.guarded(sums.numbers):
            return logprobs.new_zeros(()), logprobs.new_zeros(()), stats
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
        """One update from one mini-batch whose forward pass (with gradients) is done; its statistics.

        Mind the order of the arguments: `loss` has another one, as in TRL. Where the ratio guard fires on the tokens
        of all ranks nothing is updated, neither weights nor the optimizer's state.
        """
        sums = self.updates.sums(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        return self.updates.one(sums, logprobs, vpreds, mask, advantages)

    # What is told

    def record_step_stats(self, kl_coef: float, **data: Any) -> dict[str, Any]:
        """Statistics of a step over the samples of all ranks, under TRL's names.

        `data`: masks, logprobs, ref_logprobs, non_score_reward, kls (B, T-1); scores (B,); queries, responses; and
        train_stats. Without `kls` the plain log-ratio is taken.
        """
        kls = data["kls"] if "kls" in data else data["logprobs"] - data["ref_logprobs"]
        columns = [data["scores"], data["masks"], data["logprobs"], data["ref_logprobs"], data["non_score_reward"], kls]
        columns = [column.detach().cpu() for column in columns]
        lengths = ([len(t) for t in data[name]] for name in ("queries", "responses"))
        own = [report.Sample(*row) for row in zip(*lengths, *columns, strict=True)]
        return report.step_statistics(report.gathered(own, self.accelerator), kl_coef, data["train_stats"])

    def gather_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Statistics of this rank -> of all: numbers averaged, arrays put together; see `ppo.report`."""
        return report.gather_stats(stats, self.accelerator)

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Any],
        rewards: list[Tensor],
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Hand a step's statistics and rewards to the tracker, on the main process; see `ppo.tracking`."""
        tracking.log_stats(self.accelerator, self.config, self.current_step, stats, batch, rewards, columns_to_log)
