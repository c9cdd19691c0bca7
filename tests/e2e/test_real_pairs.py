"""Real preference pairs through every stage: all of tulu's and sixty of qa_feedback's, GPT-2's tokenizer, ZeRO-3."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from tests.e2e.running import audited, ray_align, rows, summary
from tests.places import DATA

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real preference pairs are not on this machine"),
]

CONFIG = """
[run]
name = "real"
audit = true
[data]
train = ["{tulu}", "{qa}"]
max_length = 1024
[tokenizer]
path = "{tokenizer}"
[policy]
kind = "huggingface"
[policy.config]                # 8.5 M parameters beside the embeddings
model_type = "llama"
vocab_size = 50257
hidden_size = 256
intermediate_size = 768
num_hidden_layers = 10
num_attention_heads = 4
max_position_embeddings = 1024
tie_word_embeddings = true
[reference]
actors = 2
batch_sequences = 64
batch_tokens = 4096
[train]
batch_pairs = 32
micro_batch_tokens = 4096
learning_rate = 1e-5
[deepspeed]
stage = 3
[cluster]
workers = 2
"""


def test_every_used_row_is_trained_on_once(tmp_path: Path) -> None:
    qa = tmp_path / "qa.jsonl"
    with gzip.open(DATA / "qa_feedback.jsonl.gz", "rt", encoding="utf-8") as file:
        qa.write_text("".join(next(file) for _ in range(60)), encoding="utf-8")
    config = tmp_path / "real.toml"
    fields = {"tulu": DATA / "tulu_human_pairs.jsonl.gz", "qa": qa, "tokenizer": DATA / "tokenizers/gpt2"}
    config.write_text(CONFIG.format(**fields), encoding="utf-8")
    done = ray_align("run", str(config), seconds=3000)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "real"
    found = summary(run)
    print(done.stdout, found)
    assert found["pairs_read"] == 497 + 60
    assert found["pairs_read"] == found["pairs_used"] + found["pairs_rejected"]
    assert len(rows(run / "rejected.jsonl")) == found["pairs_rejected"]
    trained = audited(run)
    assert len(trained) == len(set(trained)) == found["pairs_used"]
    assert math.isclose(found["loss_first"], math.log(2), abs_tol=1e-6)
