"""Whether a training job has room: its estimate against a memory, and the keys to change where it is too large."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from dpo.lm.model_config import Shape
from pipeline.config import Config, HuggingFacePolicy, XTransformersPolicy
from pipeline.config.deepspeed import TUNED, deepspeed_settings
from pipeline.models.adapted import given_keys
from pipeline.models.cards import Card
from pipeline.models.sizing import Frozen, Memory, MicroBatch, Zero, estimate
from pipeline.models.start import config_ahead

HEADS = ("lm_head", "embed_out")
BUCKET = 100_000_000  # elements; of stage 2, so that sending begins early in the backward pass
USUAL_BUCKET, USUAL_LIVE = Zero._field_defaults["bucket"], Zero._field_defaults["live"]
FULL = 0.85  # share of a memory above which an estimate is no promise: allocators leave gaps


class Training(NamedTuple):
    """The settings that decide the memory of a worker in training."""

    shape: Shape
    zero: Zero
    lengths: tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens of prompt, chosen and rejected, one entry per pair
    budget: int  # train.micro_batch_tokens
    checkpointing: bool
    may_checkpoint: bool  # whether the model can
    gpu: bool
    frozen: Frozen | None = None  # the base under an adapter

    @classmethod
    def of(cls, config: Config, shape: Shape, *lengths: Any) -> Training:
        """Read the configuration. `lengths`: of prompts, chosen and rejected sides, one entry per pair.

        Raises:
            ConfigError: deepspeed.config cannot be used.
        """
        return cls(
            shape,
            Zero.of(deepspeed_settings(config.train, config.deepspeed), config.cluster.most_workers),
            (np.asarray(lengths[0]), np.asarray(lengths[1]), np.asarray(lengths[2])),
            config.train.micro_batch_tokens,
            config.train.activation_checkpointing,
            not isinstance(config.policy, XTransformersPolicy),
            config.cluster.gpus_per_worker > 0,
            frozen_under(config, shape),
        )

    @classmethod
    def unread(cls, config: Config, shape: Shape) -> Training:
        """Read the configuration where no pair was read: prompts and answers take half of data.max_length each."""
        half = np.full(config.train.micro_batch_tokens, max(1, config.data.max_length // 2))
        return cls.of(config, shape, half, half, half)

    @property
    def longest(self) -> int:
        """Tokens of the longest pair, which is never divided."""
        return int(np.max(np.sum(self.lengths, axis=0)))

    @property
    def memory(self) -> Memory:
        """The estimate for the largest micro-batch."""
        tokens = max(min(self.budget, int(np.sum(self.lengths))), self.longest)
        return estimate(
            self.shape, self.zero, MicroBatch.of(tokens, *self.lengths), self.checkpointing, self.gpu, self.frozen
        )

    def fits(self, memory: float, **changes: Any) -> bool:
        return self._replace(**changes).memory.total <= FULL * memory

    def advice(self, memory: float) -> str:
        """Name the changes each of which alone brings the estimate below FULL of a memory in bytes."""
        changes = []
        if self.may_checkpoint and self.fits(memory, checkpointing=True):
            changes.append("set train.activation_checkpointing = true")
        budgets = (self.budget >> halvings for halvings in range(1, self.budget.bit_length()))
        smaller = next((n for n in budgets if n >= self.longest and self.fits(memory, budget=n)), None)
        if smaller is not None:
            changes.append(f"lower train.micro_batch_tokens to {smaller}")
        stages = range(self.zero.stage + 1, 4)
        higher = next((n for n in stages if self.fits(memory, zero=self.zero._replace(stage=n))), None)
        if higher is not None:
            changes.append(f"raise deepspeed.stage to {higher}")
        if changes:
            sentence = ", or ".join(changes)
            return f"{sentence[0].upper()}{sentence[1:]}."
        parts = self.memory._asdict()
        return NO_SINGLE_CHANGE[max(("states", "buffers", "activations"), key=lambda name: parts[name])]


def frozen_under(config: Config, shape: Shape) -> Frozen | None:
    """The base under the adapter of [policy.adapter]; None where all weights are trained."""
    policy = config.policy
    if not isinstance(policy, HuggingFacePolicy) or policy.adapter is None:
        return None
    keys = given_keys(policy.adapter)
    whole = keys["modules_to_save"] or []
    pairs = keys["r"] * shape.layers * sum(_widths(shape, keys["target_modules"]))
    return Frozen(
        pairs + len(whole) * shape.vocabulary * shape.hidden,
        policy.quantize,
        any(name in HEADS for name in whole),
    )


def _widths(shape: Shape, targets: str | list[str]) -> list[int]:
    """Inputs and outputs of each adapted matrix of a layer; those of all of them where names are not known here."""
    d, query, key_value, inner = shape.hidden, shape.query, shape.key_value, shape.intermediate
    known = {"q_proj": d + query, "k_proj": d + key_value, "v_proj": d + key_value, "o_proj": query + d}
    known |= {"up_proj": d + inner, "down_proj": inner + d} | ({"gate_proj": d + inner} if shape.gated else {})
    named = [known[name] for name in targets if name in known] if isinstance(targets, list) else []
    return named or list(known.values())


def advised_zero(training: Training, memory: float) -> Zero:
    """Choose how to shard over GPUs of a memory in bytes: the lowest stage that fits sends the least.

    Stage 1 sends gradients once a step. Stage 2 sends them with every micro-batch, from small buckets beside the
    backward pass. Stage 3 sends weights too.
    """
    own = training.zero.bucket
    first, second, third = (
        training.zero._replace(stage=1, overlap=False),
        training.zero._replace(stage=2, overlap=True, bucket=own if own != USUAL_BUCKET else BUCKET),
        training.zero._replace(stage=3, overlap=True),
    )
    if training.zero.weights_on_cpu:
        return third  # no other can leave them there
    if training.zero.workers == 1:
        return first  # there is nobody to share with
    return next((zero for zero in (first, second) if training.fits(memory, zero=zero)), third)


def chosen_sharding(config: Config, memory: float) -> dict[str, Any]:
    """Choose the keys of [deepspeed] for GPUs of a memory in bytes; none where the model's sizes are unknown.

    Keys that the configuration or its file sets are left out.

    Args:
        config: settled but for these keys.

    Raises:
        ConfigError: deepspeed.config cannot be used.
    """
    try:
        shape = Shape.of(config_ahead(config) or {})
    except KeyError:
        return {}
    training = Training.unread(config, shape)
    # Of [least, most] workers the fewest have most to hold; a single one would leave the others out of account.
    workers = min(config.cluster.most_workers, max(2, config.cluster.least_workers))
    training = training._replace(zero=training.zero._replace(workers=workers))
    zero = advised_zero(training, memory)
    if zero.stage == 3 and isinstance(config.policy, HuggingFacePolicy) and config.policy.quantize != "none":
        zero = zero._replace(stage=2)  # a quantized base is never sharded
    chosen: dict[str, Any] = {}
    if zero.stage == 2:
        chosen = {"overlap_comm": True, "reduce_bucket_size": BUCKET}
    elif zero.stage == 3:
        chosen = _gathered(training._replace(zero=zero), memory)
    given = deepspeed_settings(config.train, config.deepspeed)["zero_optimization"]
    return {"stage": zero.stage, **{name: chosen[name] for name in TUNED if name in chosen and name not in given}}


def _gathered(training: Training, memory: float) -> dict[str, int]:
    """The weights that stage 3 gathers, from what all else leaves of a memory in bytes.

    Two layers at least: the one that computes, and the next, which is gathered meanwhile where it has room.
    """
    layer = training.shape.body / training.shape.layers
    without = training._replace(zero=training.zero._replace(live=0)).memory.total
    room = max(0.0, FULL * memory - without) / training.zero.width
    most = max(USUAL_LIVE, 2 * layer)
    return {
        "stage3_prefetch_bucket_size": int(min(layer, room / 2)),
        "stage3_max_live_parameters": int(min(max(room, 2 * layer), most)),
    }


NO_SINGLE_CHANGE = {
    "states": 'Raise deepspeed.stage to 3 and cluster.workers, or set deepspeed.offload_optimizer = "cpu".',
    "buffers": "Lower deepspeed.reduce_bucket_size.",
    "activations": "Set train.activation_checkpointing = true, and lower train.micro_batch_tokens and data.max_length.",
}


def memory_here(workers: int) -> float:
    """Return this machine's memory for each of several workers, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / workers


def shortage(config: Config, model: dict[str, Any], card: Card) -> str | None:
    """Say that training will hardly fit a card; None if it fits, or if the model's sizes are unknown."""
    try:
        shape = Shape.of(model)
    except KeyError:
        return None
    training = Training.unread(config, shape)
    if training.fits(card.memory):
        return None
    memory = training.memory
    return f"memory    about {memory}. {memory.total / card.memory:.0%} of {card}. {training.advice(card.memory)}"
