"""A section of the configuration -> the job of a group of workers."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from pipeline.config import Config, Optimization
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.models.device import device_of
from pipeline.worker.feed import Feed
from pipeline.worker.job import Job


def make_job(
    config: Config, settings: Optimization, steps_per_epoch: int, feed: Feed, pad_id: int, **fields: Any
) -> Job:
    """A job from a section of the configuration; `fields` are those that differ between sft and train."""
    cluster = config.cluster
    steps = settings.epochs * steps_per_epoch
    adamw = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    deepspeed = deepspeed_settings(config.train, config.deepspeed)
    return Job(
        pad_id=pad_id,
        step_lengths=[str(Path(path).with_suffix(".npz")) for epoch in feed.epochs for path in epoch],
        may_share=config.train.share_prompts,
        activation_checkpointing=config.train.activation_checkpointing,
        deepspeed=deepspeed | {"gradient_clipping": settings.max_grad_norm},
        adamw=adamw,
        dtype=config.train.dtype,
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch,
        micro_batch_tokens=settings.micro_batch_tokens,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_steps=round(settings.warmup_fraction * steps),
        checkpoint_minutes=config.train.checkpoint_minutes,
        checkpoint_steps=config.train.checkpoint_steps,
        keep_checkpoints=config.train.keep_checkpoints,
        tensorboard=config.report.tensorboard or "tensorboard" in config.report.trackers,
        threads=device_of(cluster.cpus_per_worker, cluster.most_workers, cluster.gpus_per_worker).threads,
        deterministic=config.train.deterministic,
        verdict=f"{fields['logs']}/out-of-memory-{uuid.uuid4().hex[:8]}.txt",  # of this try alone
        **fields,
    )
