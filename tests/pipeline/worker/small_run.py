"""A training run small enough for tests, and the same run written plainly: one process, one sequence at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dpo.lm.batch import collate
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.models import load_model
from dpo.lm.sequences import TokenSequence
from dpo.lm.weights import canonical_tensors, read_weights, write_weights
from dpo.lm.x_transformers import XTransformersModel
from dpo.losses import PairLogps, dpo_loss
from dpo.terms import Term
from dpo.text.pairs import TokenizedPair
from pipeline.config import DeepSpeed, Train
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.store.tokens import ORDERED, token_row
from pipeline.worker.loop import Job

PLAIN = Way(shared=False, scored_only=False)  # no layout or head of ours
VOCABULARY, BETA, RATE, CLIP = 64, 0.1, 5e-3, 0.8
# Adam divides by a gradient's own size, so a gradient that is all rounding would move a weight as far as any other and
# no two ways to sum could agree; this epsilon is above such gradients and far below the real ones.
ADAMW = {"betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.01}
# As DeepSpeed is set by itself, stage 3 would gather models this small once and for all. With these its matrices are
# gathered for each module and let go behind it, while norms (under 100 elements) stay, as in a large model.
LIKE_LARGE_MODELS = {
    "stage3_param_persistence_threshold": 100,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
X_ROTARY = {
    "model_type": "x-transformers",
    "num_tokens": VOCABULARY,
    "max_seq_len": 64,
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "positions": "rotary",
    "decoder": {},
    "wrapper": {},
}
X_TIED = {**X_ROTARY, "positions": "absolute", "wrapper": {"tie_embedding": True}}


def model_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder with random weights."""
    kind = XTransformersModel if config["model_type"] == "x-transformers" else HuggingFaceModel
    model = kind.random(config, seed=1)
    folder.mkdir(parents=True)
    write_weights(folder, canonical_tensors(model.network))
    model.write_config(folder)
    return folder


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of 11 to 16 tokens that can be told apart: chosen tokens are mostly low ids, rejected ones high."""
    draw = random.Random(seed)
    rows = []
    for identity in range(count):
        prompt = [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 6))]
        long, short = draw.randint(11, 16) - len(prompt), draw.randint(2, 5)
        chosen_length, rejected_length = draw.sample([long, short], 2)
        chosen = [draw.randrange(VOCABULARY * 3 // 4) for _ in range(chosen_length)]
        rejected = [draw.randrange(VOCABULARY // 4, VOCABULARY) for _ in range(rejected_length)]
        # As in a chat, some tokens are not scored; the last always is.
        masks = [[draw.random() < 0.8 for _ in ids[1:]] + [True] for ids in (chosen, rejected)]
        rows.append(token_row(identity, TokenizedPair(prompt, chosen, rejected, *masks, False, 0)))
    return rows


def scored_logps(model: LogprobModel, row: dict[str, Any], side: str) -> Tensor:
    """Log-probs of one completion's scored tokens, computed alone and without padding."""
    batch = collate([TokenSequence(row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_mask"])], pad_id=0)
    return model(batch).logps


def cached(folder: Path, rows: list[dict[str, Any]], dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """The rows with the log-probs of the model that training starts from."""
    model = LogprobModel(load_model(folder, dtype), PLAIN)
    with torch.no_grad():
        return [
            {**row, **{f"{side}_logps": scored_logps(model, row, side).numpy() for side in ("chosen", "rejected")}}
            for row in rows
        ]


def tables(rows: list[dict[str, Any]], sizes: list[int]) -> list[pa.Table]:
    """One table a step."""
    ends = np.cumsum(sizes)
    return [pa.Table.from_pylist(rows[end - size : end], schema=ORDERED) for size, end in zip(sizes, ends, strict=True)]


def epochs_of(rows: list[dict[str, Any]], sizes: list[int], count: int) -> list[list[pa.Table]]:
    """Epochs of the same rows, each in its own order."""
    return [tables(random.Random(e).sample(rows, len(rows)), sizes) for e in range(count)]


def make_job(
    folder: Path, model: Path, epochs: list[list[pa.Table]], stage: int, max_grad_norm: float = CLIP, **changes: Any
) -> Job:
    """A preference job below `folder`; `changes` are fields of Job."""
    for name in ("weights", "logs", "checkpoints"):
        (folder / name).mkdir(parents=True)
    job = Job(
        mixture=(Term("sigmoid", {"beta": BETA}),),
        imitated=(),
        pad_id=0,
        may_share=True,
        activation_checkpointing=False,
        step_lengths=[],
        model=str(model),
        weights=str(folder / "weights"),
        logs=str(folder / "logs"),
        checkpoints=str(folder / "checkpoints"),
        fingerprint="job",
        deepspeed={},
        adamw={"lr": 1.0, **ADAMW},  # this rate is never used: the schedule sets every step's
        dtype="float32",
        epochs=len(epochs),
        steps_per_epoch=len(epochs[0]),
        micro_batch_tokens=64,
        learning_rate=RATE,
        schedule="constant",
        warmup_steps=0,
        guard_tolerance=1e-5,
        evaluate_every=None,
        best_by=None,
        checkpoint_minutes=1e9,
        checkpoint_steps=None,
        keep_checkpoints=2,
        audit=False,
        tensorboard=False,
        threads=1,
    )
    job = replace(job, **changes)
    settings = Train(max_grad_norm=max_grad_norm, dtype=job.dtype)
    (folder / "ds_config.json").write_text(json.dumps({"zero_optimization": LIKE_LARGE_MODELS}), encoding="utf-8")
    sharding = DeepSpeed(stage=stage, config=str(folder / "ds_config.json"))
    return replace(job, deepspeed=deepspeed_settings(settings, sharding))


class Expected(NamedTuple):
    """What the plain run gives, step by step."""

    metrics: list[dict[str, float]]  # before each update
    norms: list[float]
    weights: list[dict[str, Tensor]]  # after each update


StepLoss = Callable[[LogprobModel, list[dict[str, Any]]], tuple[Tensor, dict[str, float]]]


def preference(model: LogprobModel, rows: list[dict[str, Any]]) -> tuple[Tensor, dict[str, float]]:
    """Mean DPO loss of the rows, and the mean of every metric."""
    terms, metrics = [], []
    for row in rows:
        policy = PairLogps(*(scored_logps(model, row, side).double().sum() for side in ("chosen", "rejected")))
        reference = PairLogps(*(torch.tensor(row[f"{s}_logps"]).double().sum() for s in ("chosen", "rejected")))
        terms.append(dpo_loss(policy, reference, beta=BETA))
        chosen, rejected = (BETA * float((p - r).detach()) for p, r in zip(policy[:2], reference[:2], strict=True))
        metrics.append(
            {
                "loss": float(terms[-1].detach()),
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": float(chosen > rejected),
                "logps/chosen": float(policy.chosen.detach()),
                "logps/rejected": float(policy.rejected.detach()),
            }
        )
    means = {name: sum(m[name] for m in metrics) / len(rows) for name in metrics[0]}
    return torch.stack(terms).sum() / len(rows), means


def plain_run(
    model: Path,
    epochs: list[list[pa.Table]],
    rates: list[float],
    max_grad_norm: float = CLIP,
    loss: StepLoss = preference,
) -> Expected:
    """Train without DeepSpeed, micro-batches or ranks."""
    steps = [table for epoch in epochs for table in epoch]
    policy = LogprobModel(load_model(model, torch.float32), PLAIN)
    optimizer = torch.optim.AdamW(policy.parameters(), **ADAMW)
    expected = Expected([], [], [])
    for table, rate in zip(steps, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        value, metrics = loss(policy, table.to_pylist())
        value.backward()
        limit = max_grad_norm or float("inf")  # 0 does not clip
        expected.norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), limit)))
        optimizer.step()
        expected.metrics.append(metrics)
        expected.weights.append({n: t.detach().clone() for n, t in canonical_tensors(policy.model.network)})
    return expected


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curve(job: Job, name: str = "loss") -> list[float]:
    """A metric of every step; steps must be there once and in order."""
    rows = [row for row in json_lines(Path(job.logs) / "metrics.jsonl") if name in row]
    assert [row["step"] for row in rows] == list(range(1, job.steps + 1))
    return [row[name] for row in rows]


def trained(job: Job) -> dict[str, Tensor]:
    return dict(read_weights(Path(job.weights)))


def saved(job: Job) -> list[Path]:
    """Folders of checkpoints, oldest attempt first."""
    return sorted(path for path in Path(job.checkpoints).iterdir() if path.is_dir())


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def apart(job: Job, expected: Expected) -> float:
    """The largest difference between the trained weights and the plain run's, as a share of how far those moved."""
    moved = distance(dict(read_weights(Path(job.model))), expected.weights[-1])
    return distance(trained(job), expected.weights[-1]) / moved
