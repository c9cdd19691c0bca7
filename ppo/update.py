"""The optimisation of one step: epochs of mini-batches, updates, the ratio guard, the early stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpo.lm.batch import same_prompt
from dpo.lm.sequences import TokenSequence
from ppo import report
from ppo.config import PPOConfig
from ppo.engine import Engine
from ppo.flat import FlatForward
from ppo.forward import Outputs, forward
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
    sequences: Sequence[TokenSequence] | None = None  # the samples
    flat: bool = False  # whether the model computes them flat, see `ppo.flat`


class Updates:
    """Turns batches into updates. Statistics are those of the mini-batches of all ranks."""

    def __init__(self, config: PPOConfig, engine: Engine, reduce: Reduce):
        """`reduce` adds a tensor up over the ranks."""
        self.config, self.engine, self.reduce = config, engine, reduce
        self.flat = FlatForward(engine.accelerator, reduce)
        # Its own stream, so that nothing else that draws numbers changes the order.
        self.order = np.random.RandomState(config.seed)

    def run(self, batch: Batch, stop: Callable[[Tensor], bool]) -> dict[str, Tensor]:
        """All epochs, until one behind which `stop` says so of its policykl; the statistics, see `told`."""
        try:
            return self._epochs(batch, stop)
        finally:
            self.flat.restore_attention()

    def _epochs(self, batch: Batch, stop: Callable[[Tensor], bool]) -> dict[str, Tensor]:
        config = self.config
        met: list[tuple[Tensor, Tensor]] = []
        numbers: list[Tensor] = []
        for _ in range(config.ppo_epochs):
            permutation = torch.from_numpy(self.ordered(batch))
            updates = permutation.to(batch.mask.device).split(config.backward_batch_size)
            # The tokens of all ranks, known before the first backward pass of an update.
            tokens = self.reduce(torch.stack([batch.mask[at].sum() for at in updates]).double())
            epoch: list[Tensor] = []
            for at, count in zip(updates, tokens.tolist(), strict=True):
                epoch += self._update(batch, at, count, met)
            numbers += epoch
            looked_at = epoch[-1] if config.early_stopping_over == "last" else torch.stack(epoch).sum(0)
            if config.early_stopping and stop(torch.tensor(means(looked_at)["policykl"], device=looked_at.device)):
                break
        return self.told(numbers, met)

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
                out, columns = self._forward(batch, part)
                old, mask, values, advantages, returns = (
                    x[part, columns]
                    for x in (batch.logprobs, batch.mask, batch.values, batch.advantages, batch.returns)
                )
                data = (old, values, out.logits, out.values, out.logprobs, mask, advantages, returns)
                sums = self.sums(*data, entropy=out.entropy)
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

    def ordered(self, batch: Batch) -> np.ndarray:
        """The samples of an epoch in random order; if the configuration says so, those of a prompt together."""
        order = self.order.permutation(self.config.batch_size)
        if not self.config.group_mini_batches or batch.sequences is None:
            return order
        return order[np.concatenate(same_prompt([batch.sequences[i] for i in order]))]

    def _forward(self, batch: Batch, part: Tensor) -> tuple[Outputs, slice]:
        """The forward pass of some samples; and which columns of the batch its outputs have."""
        config, model = self.config, self.engine.model
        if batch.flat and batch.sequences is not None:
            some = [batch.sequences[i] for i in part.tolist()]
            return self.flat.forward(model, some, batch.mask[part], config.logit_temperature), slice(None)
        inputs, columns = chunk(batch.inputs, part, trim=not config.pad_for_acceleration)
        return forward(model, inputs, config.logit_temperature), columns

    def sums(self, *batch: Tensor | None, entropy: Tensor | None = None) -> Sums:
        """`loss_sums` of a mini-batch, with the clip ranges of the configuration."""
        ranges = {"cliprange": self.config.cliprange, "cliprange_value": self.config.cliprange_value}
        return loss_sums(*batch, **ranges, entropy=entropy)  # type: ignore[arg-type]

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

    def learn(self, loss: Tensor, skipped: bool) -> None:
        """Add the loss of a mini-batch of this rank to the update that it is a part of, and end that with its last.

        A mini-batch that any rank skips adds nothing on any rank. Losses of ranks and parts are averaged.

        Raises:
            FloatingPointError: the loss of a rank is not a number.
        """
        engine, ranks = self.engine, self.engine.accelerator.num_processes
        if not engine.within:
            engine.drop()
        leaving, total = self.reduce(torch.stack([loss.new_tensor(skipped), loss.detach()]).double()).tolist()
        share = loss / (ranks * engine.parts)
        if not leaving:
            if not np.isfinite(total):
                raise FloatingPointError(
                    f"the loss of a mini-batch is {total}, the weights were not changed by it: lower the learning "
                    "rate, set max_grad_norm or score_clip, or look for infinite log-probs in the model"
                )
            engine.backward(share, engine.last)
            engine.counted = True
        elif engine.last and engine.counted:
            engine.backward(0.0 * share, engine.last)
        if engine.last and engine.counted:
            engine.step()

    def told(self, numbers: list[Tensor], met: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """A row for each mini-batch of every statistic; in one row every masked advantage and ratio met.

        `policy/skipped` is the number of mini-batches that were left out.
        """
        each = [statistics(n, self.config.value_weight) for n in numbers]
        told = {name: torch.tensor([[one[name]] for one in each], dtype=torch.float64) for name in each[0]}
        skipped = sum(self.guarded(n) for n in numbers)
        told["policy/skipped"] = torch.tensor([[float(skipped)]])
        self.say_skipped(skipped, len(numbers))
        own = [tuple(torch.cat(column).detach().cpu() for column in zip(*met, strict=True))]
        parts = report.gathered(own, self.engine.accelerator)
        for name, column in zip(("policy/advantages", "policy/ratio"), zip(*parts, strict=True), strict=True):
            told[name] = torch.cat(column)[None]
        return told

    def say_skipped(self, skipped: int, number: int) -> None:
        """Warn of mini-batches that the ratio guard left out."""
        if skipped:
            warn(
                f"{skipped} of {number} mini-batches changed nothing: their mean probability ratio is above "
                f"ratio_threshold = {self.config.ratio_threshold}. Lower the learning rate or ppo_epochs."
            )
