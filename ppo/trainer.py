"""PPOTrainer: one policy with a value head, a frozen reference, scores from outside, clipped updates.

The caller generates and scores; `step` does the rest. The class has the signature of TRL's and Intel's, up to TRL 0.11.
Where it differs from them, the docstring beside the line says so. It runs on one process, on several
(`torchrun`, `accelerate launch`), and over DeepSpeed at any ZeRO stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppo import generation, report, tracking
from ppo.checks import padding_token, position_limit
from ppo.config import PPOConfig
from ppo.engine import forget_dropout_
from ppo.estimators import estimate, without_values
from ppo.forward import dropout_off, with_positions
from ppo.given import check_finite, check_lengths, checked_step, habits
from ppo.inputs import token_sequences
from ppo.losses import logprobs_from_logits
from ppo.methods import OF_AN_UPDATE, refuse_deaf_overrides, run_by_methods
from ppo.parts import Parts
from ppo.report import single
from ppo.said import warn
from ppo.tracking import timed
from ppo.update import Batch


class Pair(NamedTuple):
    """Log-probs of the same tokens."""

    own: Tensor
    reference: Tensor


class PPOTrainer(Parts):
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

        training_data_collator: pads what the model is given, as transformers' `DataCollatorForLanguageModeling` does,
            whose `labels` are left out; None: the padding of `ppo.inputs`.

    A subclass may override whatever TRL calls as a method of its own: `ppo.methods.CALLS` has them, with what they are
    called with. Where it overrides `batched_forward_pass`, `train_minibatch` or `loss`, a step makes its updates
    through these three, and averages over mini-batches as TRL does. Else it divides once, by the tokens of the update.

    Raises:
        ValueError: an argument of a wrong type.
        TypeError: a subclass (where it is made) overrides what would not be called, or with other parameters.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_deaf_overrides(cls, PPOTrainer)

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
        self._settle()
        checked = self._step_safety_checker(self.config.batch_size, queries, responses, scores, response_masks)  # type: ignore[arg-type]
        queries, responses, scores, response_masks = checked
        raw = torch.stack([torch.as_tensor(score).detach().reshape(()).float() for score in scores])
        inputs = with_positions(self._unwrapped, dict(self.prepare_model_inputs(queries, responses)))
        check_lengths(inputs, position_limit(self._unwrapped))
        self._look_for_habits(queries, responses)
        shaped = self.shape_scores(raw.to(self.current_device))
        with timed(seconds, "forward_pass"), torch.no_grad(), dropout_off(self._unwrapped):
            logprobs, values, masks, pairs = self._both_passes(queries, responses, inputs, response_masks)
        with timed(seconds, "compute_rewards"), torch.no_grad():
            # Intel's returns no KL: there the plain log-ratio is reported.
            rewards, penalty, *kl = self.compute_rewards(shaped, *pairs, masks)
        with timed(seconds, "compute_advantages"), torch.no_grad():
            if self.config.advantage_estimator == "gae":
                values, advantages, returns = self.compute_advantages(values, rewards, masks)
            else:
                values, advantages, returns = estimate(self.config, queries, rewards, masks, self._sum)
        with timed(seconds, "optimize_step"), dropout_off(self._unwrapped, self.config.gradient_checkpointing):
            samples = token_sequences(queries, responses, response_masks)
            flat = self._flat(self.model, inputs, queries, responses)
            batch = Batch(inputs, masks, logprobs.own, values, advantages, returns, samples, flat)
            if self._overrides(*OF_AN_UPDATE):
                train_stats = run_by_methods(self, batch, queries, responses)
            else:
                train_stats = self.updates.run(batch, self._early_stop)
        with timed(seconds, "calc_stats"):
            measured = {"scores": shaped, "logprobs": logprobs.own, "ref_logprobs": logprobs.reference, "masks": masks}
            measured |= {"non_score_reward": penalty, "train_stats": train_stats, "queries": queries}
            measured |= {"responses": responses, "kls": kl[0] if kl else logprobs.own - logprobs.reference}
            stats = self.record_step_stats(kl_coef=self.kl_ctl.value, **measured)
        return self._finished({name: single(value) for name, value in stats.items()}, seconds, started)

    def _describe(self, config: PPOConfig) -> None:
        """Describe the configuration, and refuse one with which an override would not be called."""
        if config.advantage_estimator != "gae" and self._overrides("compute_advantages"):
            raise TypeError(
                f"{type(self).__name__}.compute_advantages would not be called: advantage_estimator = "
                f"{config.advantage_estimator!r} takes advantages from whole answers. Override compute_rewards, "
                'or set advantage_estimator = "gae"'
            )
        super()._describe(config)

    def _settle(self) -> None:
        """Take in what was assigned to the configuration since the last step.

        Raises:
            ValueError: its values do not fit together.
        """
        self.config.check()
        self._describe(self.config)
        self.engine.max_grad_norm = self.config.max_grad_norm or None
        if self.config.gradient_checkpointing and self._overrides("train_minibatch"):
            forget_dropout_(self._unwrapped)
        if self.engine.deepspeed and self.config.gradient_accumulation_steps > 1 and self._overrides("train_minibatch"):
            self._warn_once(
                "under DeepSpeed accelerator.backward does not divide by gradient_accumulation_steps = "
                f"{self.config.gradient_accumulation_steps}: divide the loss in train_minibatch, or call super()'s"
            )

    def _step_safety_checker(
        self,
        batch_size: int,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        masks: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor] | None]:
        """What a step was given, looked at and on this rank's device; each score a tensor ().

        Raises:
            ValueError: see `step`.
        """
        given = (queries, responses, scores, masks)
        checked = checked_step(batch_size, *given, self._vocabulary, self.is_encoder_decoder).to(self.current_device)
        queries, responses = ([t.to(self.current_device) for t in items] for items in (queries, responses))
        on_device = None if masks is None else [mask.to(self.current_device) for mask in masks]
        return queries, responses, list(checked), on_device

    def _both_passes(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        inputs: dict[str, Tensor],
        response_masks: list[Tensor] | None,
    ) -> tuple[Pair, Tensor, Tensor, Pair]:
        """Log-probs of policy and reference, values, mask; and those log-probs that the penalty compares."""
        full = self.config.kl_penalty == "full"
        own, logits, values, masks = self.batched_forward_pass(
            self.model, queries, responses, inputs, return_logits=full, response_masks=response_masks
        )
        with self.reference() as model:
            # The reference is not asked for values: which tokens count is the policy's business.
            reference, other, *_ = self.batched_forward_pass(model, queries, responses, inputs, return_logits=full)
        check_finite(own, reference, values, masks)
        logprobs = pair = Pair(own, reference)
        if full and logits is not None and other is not None:
            pair = Pair(*(logprobs_from_logits(x, None, gather=False) for x in (logits, other)))
        return logprobs, values, masks, pair

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
                f"the KL to the reference is {stats['objective/kl']:.2f}, which no KL can be. Either responses were "
                "sampled from another distribution than the policy's (top_k, top_p, a minimal length, a temperature, "
                "an earlier policy), or the policy has diverged: then lower the learning rate or ppo_epochs"
            )
        self._keep_best(stats["ppo/mean_scores"])
        if self.config.optimize_device_cache and self.device.type != "cpu":
            torch.accelerator.memory.empty_cache()
        seconds["total"] = time.perf_counter() - started
        stats |= {f"time/ppo/{name}": value for name, value in seconds.items()}
        if self.is_distributed:
            # Arrays are of all ranks already.
            stats |= self.gather_stats({name: value for name, value in stats.items() if isinstance(value, float)})
        return stats

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
        pad = padding_token(self.tokenizer, self._vocabulary)
        for phrase in habits(queries, responses, pad, ends, self.is_encoder_decoder):
            self._warn_once(phrase)

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
