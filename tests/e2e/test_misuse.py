"""What a user may get wrong: one clear paragraph on stderr, exit status 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.running import ray_align
from tests.pipeline.worker.small_run import LLAMA, model_folder

CONFIG = """
[data]
train = "pairs.jsonl"
max_length = 32
[policy]
kind = "x-transformers"
dim = 32
depth = 1
heads = 2
[report]
tensorboard = false
"""
GOOD = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(8)]


def refused(folder: Path, *overrides: str, rows: list[object] = GOOD, config: str = CONFIG) -> str:
    """Run where something is wrong; returns the one paragraph that says what."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "my.toml").write_text(config, encoding="utf-8")
    done = ray_align("run", str(folder / "my.toml"), *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stderr.startswith("ray-align: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not list(folder.glob("runs/*/summary.json"))
    return done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=nowhere.jsonl", "nowhere.jsonl': does not exist"),
        ("train.learning_rat=0.1", "did you mean 'learning_rate'"),
        ("train.epochs=2.5", "train.epochs = 2.5"),
        ("loss.beta=0", "loss.beta = 0"),
        ("run.dir=/proc/nowhere", "run.dir: cannot write to /proc/nowhere"),
    ],
)
def test_before_anything_starts(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(tmp_path, override)


def test_a_tokenizer_that_does_not_fit_the_model(tmp_path: Path) -> None:
    head, _, _ = CONFIG.partition("[policy]")
    model = '[policy]\nkind = "huggingface"\n[policy.config]\nmodel_type = "llama"\nvocab_size = 100\n'
    said = refused(tmp_path, config=head + '[tokenizer]\npath = "bytes"\n' + model)
    assert "the tokenizer has 258 tokens and the model of policy.config knows 100" in said


@pytest.mark.skipif(bool(__import__("torch").cuda.device_count()), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(tmp_path: Path) -> None:
    assert "cluster.gpus_per_worker asks for 1 GPU(s) in all and this machine has 0" in refused(
        tmp_path, "cluster.gpus_per_worker=1"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simpo", "sigmoid"])
def test_a_model_without_its_head(tmp_path: Path, kind: str) -> None:
    """A loss without a reference has no guard, which would find at step 0 that a random head is another each time."""
    start = model_folder(tmp_path / "model", {**LLAMA, "vocab_size": 260, "tie_word_embeddings": False})
    tensors = load_file(start / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    head, _, _ = CONFIG.partition("[policy]")
    model = '[tokenizer]\npath = "bytes"\n[policy]\nkind = "huggingface"\npath = "model"\n'
    said = refused(tmp_path, config=f'{head}{model}[loss]\nkind = "{kind}"\n')
    assert "tensors are missing and would be made up at random (1): lm_head.weight. Take the whole model" in said
    assert not list(tmp_path.rglob("tokens"))  # nothing was prepared


@pytest.mark.ray
def test_every_prompt_too_long(tmp_path: Path) -> None:
    rows = [{**row, "prompt": "p" * 50 + str(i)} for i, row in enumerate(GOOD)]
    said = refused(tmp_path, rows=rows)  # type: ignore[arg-type]
    assert "None of the 8 rows can be used" in said
    assert "pairs.jsonl line 1: the prompt has 51 tokens, and data.max_length is 32" in said


@pytest.mark.ray
def test_every_row_bad(tmp_path: Path) -> None:
    said = refused(tmp_path, rows=[{"text": "no pair"}] * 8)
    assert "None of the 8 rows can be used" in said
    assert "pairs.jsonl line 1: no 'chosen' (the row has: text)" in said


@pytest.mark.ray
def test_what_was_refused_is_mended_under_the_same_name(tmp_path: Path) -> None:
    rows: list[object] = [*GOOD, {"text": "no pair"}]
    assert "1 of 9 rows cannot be used" in refused(tmp_path, rows=rows)
    done = ray_align("prepare", str(tmp_path / "my.toml"), "data.max_rejected_fraction=0.5")
    assert done.returncode == 0, done.stderr
