"""One small run through every stage on a local Ray, and what follows from it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config import DeepSpeed, Train
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.store.cache import Cache
from tests.e2e.running import audited, ray_align, rows, summary
from tests.pipeline.files import keys_in
from tests.pipeline.worker.small_run import make_job

pytestmark = pytest.mark.ray

CONFIG = """
[run]
name = "small"
audit = true
[data]
train = "pairs.jsonl"
eval = 0.2
max_length = 64
max_rejected_fraction = 0.1
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
actors = 2
[train]
epochs = 3
batch_pairs = 16
micro_batch_tokens = 512
learning_rate = 1e-2
[deepspeed]
stage = 2
[cluster]
workers = 2
[evaluate]
every_steps = 5
generate_prompts = 4
max_new_tokens = 5
[report]
tensorboard = false
"""
PAIRS = 120
IDS = [[72, 101, 108, 108, 111, 32, 119], [1, 2, 3, 4, 5, 6, 7]]

# What a user of the exported folder does, in a process that never saw ray-align.
LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.decode(tokenizer("what is it?")["input_ids"]) == "what is it?"
with torch.no_grad():
    print(json.dumps(model(torch.tensor(ids)).logits.tolist()))
"""


class Small(NamedTuple):
    config: Path
    run: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The run itself: answers in capitals are preferred; five rows cannot be used."""
    folder = tmp_path_factory.mktemp("line")
    pairs = [
        {"prompt": f"say word {i}:", "chosen": f" WORD {i}" + "!" * (i % 9), "rejected": f" word {i}" + "." * (i % 7)}
        for i in range(PAIRS)
    ]
    bad = ["{", '{"prompt": "p"}', '{"prompt": "p", "chosen": "same", "rejected": "same"}', "[1]", '{"chosen": 1}']
    lines = [json.dumps(pair) for pair in pairs[:60]] + bad + [json.dumps(pair) for pair in pairs[60:]]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = folder / "small.toml"
    config.write_text(CONFIG, encoding="utf-8")
    done = ray_align("run", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return Small(config, folder / "runs" / "small")


def test_rows_add_up_and_each_is_trained_on_once_an_epoch(small: Small) -> None:
    found = summary(small.run)
    assert (found["pairs_read"], found["pairs_used"], found["pairs_rejected"]) == (PAIRS + 5, PAIRS, 5)
    assert [row["line"] for row in rows(small.run / "rejected.jsonl")] == [61, 62, 63, 64, 65]
    assert all(row["file"] and row["reason"] for row in rows(small.run / "rejected.jsonl"))
    evaluated = len(audited(small.run)) / 3
    trained = [{row for epoch, row in audited(small.run) if epoch == e} for e in range(3)]
    assert trained[0] == trained[1] == trained[2] and len(trained[0]) == evaluated
    assert found["steps"] == 3 * math.ceil(evaluated / 16)
    assert 5 < PAIRS - evaluated < 50  # a fifth is held out


def test_the_loss_starts_at_ln_2_and_falls(small: Small) -> None:
    found = summary(small.run)
    assert math.isclose(found["loss_first"], math.log(2), abs_tol=1e-6)
    assert found["loss_last"] < 0.3
    assert found["eval_accuracy"] > 0.9


def test_the_run_folder_holds_what_is_promised(small: Small) -> None:
    names = [
        "config.json",
        "metrics.jsonl",
        "audit.jsonl",
        "rejected.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
        "export",
    ]
    assert [name for name in names if not (small.run / name).exists()] == []
    promised = {
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "grad_norm",
        "learning_rate",
        "epoch",
        "step",
        "perf/pairs_per_second",
        "perf/tokens_per_second",
        "perf/padding_fraction",
        "perf/shared_fraction",
        "perf/step_seconds",
        "perf/ingest_seconds",
        "perf/peak_memory_gib",
    }
    # On GPUs also perf/gpu_wait_seconds, and on a known card perf/mfu.
    metrics = rows(small.run / "metrics.jsonl")
    steps = [row for row in metrics if "loss" in row]
    assert all(promised == set(row) for row in steps)
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    held_out = [row for row in metrics if "eval/loss" in row]
    assert [row["step"] for row in held_out] == [*range(5, len(steps), 5), len(steps)]
    asked = rows(small.run / "samples.jsonl")
    assert [row["step"] for row in asked] == [row["step"] for row in held_out[:-1]]
    assert all(len(row["answers"]) == len(row["row_ids"]) == 4 for row in asked)
    answered = rows(small.run / "evaluation" / "answers.jsonl")
    assert [list(row["during"]) for row in answered] == [[str(row["step"]) for row in asked]] * 4
    found = summary(small.run)
    stages = ["prepare", "sft", "score", "order", "train", "evaluate", "export"]
    assert list(found["seconds"]) == stages and found["peak_rss_bytes"] > 100e6


def test_the_export_gives_the_training_engines_logits(small: Small, tmp_path: Path) -> None:
    """The engine is DeepSpeed's own, with the run's last checkpoint, on two ranks."""
    mp.start_processes(_engine_logits, (small.run, tmp_path), nprocs=2, start_method="spawn")
    command = [sys.executable, "-c", LOAD, str(small.run / "export"), json.dumps(IDS)]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    exported = torch.tensor(json.loads(loaded.stdout))
    for rank in (0, 1):
        torch.testing.assert_close(exported, torch.load(tmp_path / f"{rank}.pt"), atol=1e-5, rtol=0)


def _engine_logits(rank: int, run: Path, out: Path) -> None:
    from pipeline.worker.engine import Engine

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29743", RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    dist.init_process_group("gloo")
    config = deepspeed_settings(Train(), DeepSpeed(stage=2))
    start = next((run.parents[1] / "workspace" / "models").iterdir())  # before training: the checkpoint must matter
    job = replace(make_job(out / f"job-{rank}", start, [[]], 2), deepspeed=config, adamw={})
    engine = Engine(job, torch.device("cpu"))
    (checkpoint,) = sorted((run / "checkpoints").glob("*-*/manifest.json"))[-1:]
    engine.load(checkpoint.parent)
    with torch.no_grad():
        torch.save(engine.engine.module.model(torch.tensor(IDS)), out / f"{rank}.pt")


def test_again_nothing_is_done_and_another_beta_scores_nothing(small: Small) -> None:
    before = summary(small.run)
    weights = (small.run / "weights" / "model.safetensors").stat()
    again = ray_align("run", str(small.config))
    assert again.returncode == 0, again.stderr
    found = summary(small.run)
    assert found["sequences_scored"] == before["sequences_scored"] == 2 * PAIRS  # by the first run of this name
    assert found["seconds"]["train"] >= before["seconds"]["train"] > 1
    assert (small.run / "weights" / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns

    softer = ray_align("order", str(small.config), "run.name=softer", "loss.beta=0.5", "train.learning_rate=1e-3")
    assert softer.returncode == 0, softer.stderr
    found = summary(small.run.parent / "softer")
    assert found["sequences_scored"] == 0
    assert found["sequences_reused"] == 2 * PAIRS


def test_the_cache_is_listed_verified_compacted_and_mended(small: Small) -> None:
    folders = (small.config.parent / "workspace" / "cache").iterdir()  # of the reference, and of the trained policy
    (folder,) = [found for found in folders if Cache(str(found)).rows() == 2 * PAIRS]
    parts = len(list(folder.glob("*.parquet")))
    assert parts > 1

    def cache(action: str, *options: str) -> str:
        done = ray_align("cache", action, str(small.config), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = cache("ls")
    assert folder.name in listed and "llama" in listed and f"{2 * PAIRS}" in listed and "float32" in listed
    Cache(str(folder)).scored_with({"torch": "1.0", "transformers": "2.0"})
    verified = cache("verify", "--rows", "30", "report.ray_logs=false")
    assert "some were scored with torch 1.0, transformers 2.0; installed are " in verified
    assert f"30 of {2 * PAIRS} cached sequences scored again (of {2 * PAIRS} in the configuration)" in verified
    assert float(verified.split("largest difference ")[1].split()[0]) < 1e-5
    assert f"{folder.name}: {parts} parts -> 1, {2 * PAIRS} rows -> {2 * PAIRS}" in cache("gc")

    keys = keys_in(Cache(str(folder)))
    scored = Cache(str(folder)).values(keys)
    assert len(scored) == 2 * PAIRS
    (part,) = folder.glob("*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    again = ray_align("score", str(small.config), "run.name=mended")
    assert again.returncode == 0, again.stderr
    assert f"damaged part of the cache, to be scored again; moved to {folder}/damaged/{part.name}" in again.stdout
    assert summary(small.run.parent / "mended")["sequences_scored"] == 2 * PAIRS
    anew = Cache(str(folder)).values(keys)
    assert all(np.allclose(anew[key], values, rtol=0, atol=1e-5) for key, values in scored.items())

    used = folder / "used.json"
    used.write_text('{"time": 0}')
    assert f"{folder.name}: removed, not used for " in cache("gc", "--unused-days", "30")
    assert not folder.exists()


def test_a_name_stands_for_one_training(small: Small) -> None:
    refused = ray_align("run", str(small.config), "train.learning_rate=0.5")
    assert refused.returncode == 2
    assert "train.learning_rate (was 0.01, is 0.5)" in refused.stderr
    assert refused.stderr.count("\n") == 1
