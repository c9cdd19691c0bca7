"""What is scored again, and what is not: the stage alone, on a model that is a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dpo.lm.hf import HuggingFaceModel
from dpo.lm.weights import canonical_tensors, write_weights
from dpo.text.tokenizers import byte_tokenizer
from pipeline.store.cache import Cache
from tests.e2e.running import audited, ray_align, rows, summary
from tests.pipeline.files import keys_in
from tests.pipeline.worker.small_run import LLAMA

pytestmark = pytest.mark.ray

CONFIG = """
[run]
name = "first"
[data]
train = "pairs.jsonl"
max_length = 64
[policy]
kind = "huggingface"
path = "model"
[reference]
batch_sequences = 100
"""


def pairs(first: int, count: int) -> list[str]:
    return [
        json.dumps({"prompt": f"say word {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}."})
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 pairs, scored."""
    folder = tmp_path_factory.mktemp("reuse")
    (folder / "pairs.jsonl").write_text("\n".join(pairs(0, 1000)), encoding="utf-8")
    model = HuggingFaceModel.random(LLAMA | {"vocab_size": 258, "max_position_embeddings": 64}, 0)
    (folder / "model").mkdir()
    write_weights(folder / "model", canonical_tensors(model.network))
    model.write_config(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "run.toml").write_text(CONFIG, encoding="utf-8")
    assert score(folder, "first") == (2000, 0)
    return folder


def score(folder: Path, name: str, *overrides: str) -> tuple[int, int]:
    """Sequences scored and reused."""
    done = ray_align("score", str(folder / "run.toml"), f"run.name={name}", *overrides)
    assert done.returncode == 0, done.stderr
    found = summary(folder / "runs" / name)
    return found["sequences_scored"], found["sequences_reused"]


def test_added_rows_are_scored_and_no_others(folder: Path) -> None:
    (folder / "more.jsonl").write_text("\n".join(pairs(0, 1000) + pairs(5000, 100)), encoding="utf-8")
    assert score(folder, "more", "data.train=" + str(folder / "more.jsonl")) == (200, 2000)


def test_nothing_that_is_not_the_references_scores_anything(folder: Path) -> None:
    changed = ["loss.kind=ipo", "loss.beta=0.7", "train.learning_rate=1e-3", "run.seed=7", "train.batch_pairs=64"]
    changed += ["cluster.workers=2", "deepspeed.stage=3", "reference.actors=2", "reference.batch_sequences=10"]
    assert score(folder, "other", *changed) == (0, 2000)


@pytest.mark.long
def test_one_changed_weight_scores_everything(folder: Path) -> None:
    """Under the same path; and the old weights back again find what was scored with them."""
    path = folder / "model" / "model.safetensors"
    before = path.read_bytes()
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, path, {"format": "pt"})
    assert score(folder, "touched") == (2000, 0)
    path.write_bytes(before)
    assert score(folder, "back") == (0, 2000)


@pytest.mark.long
def test_two_runs_at_once_both_end_right(folder: Path) -> None:
    """With dtype bfloat16 the reference is another, so that both find nothing and score everything."""
    command = [sys.executable, "-m", "pipeline", "score", str(folder / "run.toml"), "train.dtype=bfloat16"]
    processes = [
        subprocess.Popen([*command, f"run.name={name}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in ("left", "right")
    ]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    found = [summary(folder / "runs" / name) for name in ("left", "right")]
    assert all(f["sequences_scored"] + f["sequences_reused"] == 2000 for f in found)
    caches = [Cache(str(path)) for path in (folder / "workspace" / "cache").iterdir()]
    (cache,) = [c for c in caches if json.loads(c.folder.read("identity.json"))["dtype"] == "bfloat16"]
    keys = keys_in(cache)
    assert len(keys) == 2000 and cache.rows() >= 2000
    before = cache.values(keys)
    assert ray_align("cache", "gc", str(folder / "run.toml")).returncode == 0
    assert (cache.rows(), len(cache.parts())) == (2000, 1)
    after = cache.values(keys)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[k], after[k], rtol=0, atol=1e-5) for k in after)


@pytest.mark.long
def test_scoring_while_training_runs_trains_the_same(folder: Path) -> None:
    """Three windows an epoch and held-out pairs; a model of its own, so that nothing is scored before."""
    again = folder / "again"
    again.mkdir()
    for name in ("pairs.jsonl", "run.toml"):
        (again / name).write_bytes((folder / name).read_bytes())
    (again / "model").symlink_to(folder / "model")
    options = ["data.eval=0.1", "train.epochs=2", "train.learning_rate=1e-2", "evaluate.every_steps=10"]
    options += ["train.micro_batch_tokens=2048", "reference.overlap_steps=10", "run.audit=true"]
    for name in ("precompute", "overlap"):
        mode = f"reference.mode={name}"
        done = ray_align(
            "run", str((folder if name == "precompute" else again) / "run.toml"), f"run.name={name}", mode, *options
        )
        assert done.returncode == 0, done.stdout + done.stderr
    runs = folder / "runs" / "precompute", again / "runs" / "overlap"
    before, meanwhile = map(summary, runs)
    assert (before["sequences_scored"], meanwhile["sequences_scored"]) == (0, 2000)
    assert len(list((runs[1] / "epochs" / "joined" / "0").glob("window-*.parquet"))) == 3
    assert audited(runs[0]) == audited(runs[1])
    losses = [[row.get("loss", row.get("eval/loss")) for row in rows(run / "metrics.jsonl")] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert before["loss_last"] < 0.4
    assert before["eval_accuracy"] == meanwhile["eval_accuracy"]
