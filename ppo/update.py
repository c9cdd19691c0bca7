"""The optimisation of one step: epochs of mini-batches, updates, the ratio guard, the early stop."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo import report
from ppo.config import PPOConfig
from ppo.engine import Engine
from ppo.forward import forward
from ppo.inputs import chunk
from ppo.losses import NUMBERS, Sums, loss_sums, means, statistics
from ppo.said import warn
from ppo.statistics import Reduce


class Batch(NamedTuple):
    """What a step optimises: model inputs (B, T), the rest (B, T-1), all computed before the first update."""

    inputs: dict[str, Tensor]
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class Updates:
    """Turns batches into updates. Statistics are those of the mini-batches of all ranks."""

    def __init__(self, config: PPOConfig, engine: Engine, reduce: Reduce):
        self.config, self.engine, self.reduce = config, engine, reduce
        # Its own stream, so that nothing else that draws numbers changes the order.
        self.order = np.random.RandomState(config.seed)

    def run(self, batch: Batch) -> dict[str, Any]:
        """All epochs; the statistics, averaged over mini-batches, and every masked advantage and ratio met."""
        config = self.config
        met: list[tuple[Tensor, Tensor]] = []
        numbers: list[Tensor] = []
        for _ in range(config.ppo_epochs):
            permutation = torch.from_numpy(self.order.permutation(config.batch_size))
            updates = permutation.to(batch.mask.device).split(config.backward_batch_size)
            # The tokens of all ranks, known before the first backward pass of an update.
            tokens = self.reduce(torch.stack([batch.mask[at].sum() for at in updates]).double())
            epoch: list[Tensor] = []
            for at, count in zip(updates, tokens.tolist(), strict=True):
                epoch += self._update(batch, at, count, met)
            numbers += epoch
            looked_at = epoch[-1] if config.early_stopping_over == "last" else torch.stack(epoch).sum(0)
            if config.early_stopping and means(looked_at)["policykl"] > 1.5 * config.target_kl:
                break
        return self._told(numbers, met)

    def _update(self, batch: Batch, at: Tensor, tokens: float, met: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """One update of the weights from the samples `at`; what each of its mini-batches amounts to."""
        config = self.config
        numbers: list[Tensor] = []
        counted = False
        self.engine.drop()
        parts = at.split(config.mini_batch_size)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with self.engine.accumulating(last):
                some, columns = chunk(batch.inputs, part, trim=not config.pad_for_acceleration)
                out = forward(self.engine.model, some, config.logit_temperature)
                old, mask, values, advantages, returns = (
                    x[part, columns]
                    for x in (batch.logprobs, batch.mask, batch.values, batch.advantages, batch.returns)
                )
                sums = self.sums(old, values, out.logits, out.values, out.logprobs, mask, advantages, returns)
                numbers.append(self.reduce(sums.numbers))
                met.append((advantages[mask.bool()], sums.ratio[mask.bool()]))
                if self.sound(numbers[-1]):
                    self._backward(sums, tokens, last)
                    counted = True
                elif last and counted:
                    # It adds nothing, but what came before it is only put together in a last backward pass.
                    self.engine.backward(0.0 * (out.logprobs.sum() + out.values.sum()), last)
        if counted:
            self.engine.step()
        return numbers

    def sums(self, *batch: Tensor) -> Sums:
        """`loss_sums` of a mini-batch, with the clip ranges of the configuration."""
        return loss_sums(*batch, cliprange=self.config.cliprange, cliprange_value=self.config.cliprange_value)

    def _backward(self, sums: Sums, tokens: float, last: bool) -> None:
        self.engine.backward((sums.policy + self.config.value_weight * sums.value) / tokens, last)

    def guarded(self, numbers: Tensor) -> bool:
        """Whether the mean ratio of a mini-batch is above the threshold: nothing is learned from it."""
        return means(numbers)["ratio"] > self.config.ratio_threshold

    def sound(self, numbers: Tensor) -> bool:
        """Whether a mini-batch of all ranks may be learned from: it is not guarded.

        Raises:
            FloatingPointError: a sum is not a number although the ratios are moderate.
        """
        if self.guarded(numbers):
            return False
        broken = [name for name, number in zip(NUMBERS, numbers.tolist(), strict=True) if not np.isfinite(number)]
        if broken:
            raise FloatingPointError(
                f"{', '.join(broken)} of a mini-batch are not finite, the weights were not changed by it: lower the "
                "learning rate, set max_grad_norm or score_clip, or look for infinite log-probs in the model"
            )
        return True

    def one(self, sums: Sums, logprobs: Tensor, vpreds: Tensor, mask: Tensor, advantages: Tensor) -> dict[str, Any]:
        """One update from a single mini-batch that has been forwarded; its statistics."""
        numbers = self.reduce(sums.numbers)
        if self.sound(numbers):
            self.engine.drop()
            self._backward(sums, float(numbers[0]), last=True)
            self.engine.step()
        return self._told([numbers], [(advantages[mask.bool()], sums.ratio[mask.bool()])])

    def _told(self, numbers: list[Tensor], met: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        each = [statistics(n, self.config.value_weight) for n in numbers]
        told: dict[str, Any] = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
        skipped = told["policy/skipped"] = sum(self.guarded(n) for n in numbers)
        if skipped:
            warn(
                f"{skipped} of {len(numbers)} mini-batches changed nothing: their mean probability ratio is above "
                f"ratio_threshold = {self.config.ratio_threshold}. Lower the learning rate or ppo_epochs."
            )
        own = [tuple(torch.cat(column).detach().cpu() for column in zip(*met, strict=True))]
        parts = report.gathered(own, self.engine.accelerator)
        for name, column in zip(("policy/advantages", "policy/ratio"), zip(*parts, strict=True), strict=True):
            told[name] = torch.cat(column).numpy()
        return told
