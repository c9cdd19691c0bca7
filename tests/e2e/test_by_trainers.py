"""The whole line with a reference that the trainers score, sharded over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.running import ray_align, rows, summary

pytestmark = pytest.mark.ray

CONFIG = """
[data]
train = "pairs.jsonl"
eval = 0.2
max_length = 64
[tokenizer]
path = "bytes"
[policy]
kind = "huggingface"
[policy.config]
model_type = "llama"
vocab_size = 258
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64
[reference]
by = "trainers"
batch_sequences = 16
[train]
batch_pairs = 16
learning_rate = 1e-2
[deepspeed]
stage = 3
[cluster]
workers = 2
[report]
tensorboard = false
"""


def test_what_the_trainers_score_is_what_the_pool_finds(tmp_path: Path) -> None:
    """The guard of step 0 and the evaluation, which both look at these values, pass; the pool has nothing to add."""
    lines = [
        json.dumps({"prompt": f"say word {i}:", "chosen": f" WORD {i}" + "!" * (i % 9), "rejected": f" word {i}"})
        for i in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "run.toml").write_text(CONFIG, encoding="utf-8")
    done = ray_align("run", str(tmp_path / "run.toml"), "run.name=trainers")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = summary(tmp_path / "runs" / "trainers")
    assert (found["sequences_scored"], found["sequences_reused"]) == (120, 0)
    steps = [row for row in rows(tmp_path / "runs" / "trainers" / "metrics.jsonl") if "loss" in row]
    assert steps[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["loss"] > steps[-1]["loss"]
    assert found["eval_accuracy"] is not None
    again = ray_align("score", str(tmp_path / "run.toml"), "run.name=pool", "reference.by=pool")
    assert again.returncode == 0, again.stdout + again.stderr
    pool = summary(tmp_path / "runs" / "pool")
    assert (pool["sequences_scored"], pool["sequences_reused"]) == (0, 120)
    verified = ray_align("cache", "verify", str(tmp_path / "run.toml"), "run.name=trainers", "--rows", "30")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "30 of 120 cached sequences scored again" in verified.stdout
    kept = json.loads((tmp_path / "runs" / "trainers" / "config.json").read_text(encoding="utf-8"))
    assert kept["reference"]["by"] == "trainers"
