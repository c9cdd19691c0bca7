"""ray-align init: the file that it writes for data, a model and this machine."""

import json
import os
import pty
import subprocess
import sys

import pytest

from pipeline import Config, cli
from tests.pipeline.files import jsonl
from tests.pipeline.worker.small_run import LLAMA, model_folder

PAIRS = [
    {"prompt": f"Question {i}? " + "x" * (i % 50), "chosen": "y" * (i % 30 + 1), "rejected": "n"} for i in range(99)
]


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "model", {**LLAMA, "vocab_size": 260})


def init(folder, *words):
    return cli.main(["init", str(folder / "my.toml"), *words])


def test_lengths_and_batches_follow_from_data_model_and_machine(tmp_path, model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "pairs.jsonl", [*PAIRS, {"no": "pair"}])
    assert init(tmp_path, "--model", "model", "--data", "pairs.jsonl", "--eval", "0.1", "tokenizer.path=bytes") == 0
    config = Config.load(str(tmp_path / "my.toml"))
    longest = max(len(row["prompt"]) + len(row["chosen"]) + 1 for row in PAIRS)
    assert config.data.max_length == -(-longest // 64) * 64
    assert config.train.micro_batch_tokens == 16384  # the most that is proposed
    assert (config.data.train, config.data.eval) == (str(tmp_path / "pairs.jsonl"), 0.1)
    assert config.policy.path == str(model)
    said = capsys.readouterr().out
    assert "100 rows were looked at, 1 of them cannot be used" in said
    assert len((tmp_path / "my.toml").read_text(encoding="utf-8").splitlines()) < 25


def test_a_run_is_named_after_its_file(tmp_path, model):
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    words = ("--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), "tokenizer.path=bytes")
    assert cli.main(["init", str(tmp_path / "one two.toml"), *words]) == 0
    assert Config.load(str(tmp_path / "one two.toml")).run.name == "one-two"
    assert init(tmp_path, *words, "run.name=mine") == 0
    assert Config.load(str(tmp_path / "my.toml")).run.name == "mine"


def test_a_terminal_is_asked_for_what_is_missing(tmp_path, model):
    """In a process of its own, behind a terminal of its own."""
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    ours, theirs = pty.openpty()
    words = ["init", str(tmp_path / "my.toml"), "--model", str(model), "tokenizer.path=bytes"]
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words], stdin=theirs, stdout=subprocess.PIPE, text=True
    )
    os.write(ours, f"{tmp_path / 'pairs.jsonl'}\n\n".encode())
    said, _ = child.communicate(timeout=100)
    os.close(ours)
    os.close(theirs)
    assert child.returncode == 0 and "Preference pairs" in said and "Model" not in said
    config = Config.load(str(tmp_path / "my.toml"))
    assert (config.data.train, config.data.eval) == (str(tmp_path / "pairs.jsonl"), 0.05)


def test_paths_elsewhere_are_written_whole(tmp_path, model, monkeypatch):
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert init(tmp_path / "here", "--model", "../model", "--data", "../pairs.jsonl", "tokenizer.path=bytes") == 0
    text = (tmp_path / "here" / "my.toml").read_text(encoding="utf-8")
    assert f'train = "{tmp_path}/pairs.jsonl"' in text and f'path = "{model}"' in text


def test_what_was_given_stays(tmp_path, model):
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    words = ("data.max_length=96", "train.micro_batch_tokens=512", "tokenizer.path=bytes", "loss.beta=0.3")
    assert init(tmp_path, "--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), *words) == 0
    config = Config.load(str(tmp_path / "my.toml"))
    assert (config.data.max_length, config.train.micro_batch_tokens, config.loss.beta) == (96, 512, 0.3)


def test_a_recipe_is_taken_over_and_what_is_left_is_named(tmp_path, model, capsys):
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "trl.yaml").write_text("beta: 0.2\nlearning_rate: 1e-6\nmax_grad_nrm: 3\nmax_length: 128\n")
    words = ("--from", str(tmp_path / "trl.yaml"), "--model", str(model), "--data", str(tmp_path / "pairs.jsonl"))
    assert init(tmp_path, *words, "tokenizer.path=bytes") == 0
    config = Config.load(str(tmp_path / "my.toml"))
    assert (config.loss.beta, config.train.learning_rate, config.data.max_length) == (0.2, 1e-6, 128)
    assert "not taken over: max_grad_nrm: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "policy.path is missing: give it with --model"),
        (["--model", "m"], "data.train is missing: give it with --data"),
        (["--model", "m", "--data", "d", "loss.bta=1"], "loss.bta = 1: there is no such key; did you mean 'beta'?"),
    ],
)
def test_what_is_missing_or_wrong_leaves_no_file(tmp_path, words, said, capsys):
    assert init(tmp_path, *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "my.toml").exists()


def test_a_file_that_is_there_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "my.toml").write_text("mine")
    assert init(tmp_path, "--model", "m", "--data", "d") == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "my.toml").read_text() == "mine"


def test_a_model_that_cannot_be_had_leaves_the_defaults(tmp_path, capsys):
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    assert init(tmp_path, "--model", "./none", "--data", str(tmp_path / "pairs.jsonl")) == 0
    assert "could not be looked at" in capsys.readouterr().out
    assert Config.load(str(tmp_path / "my.toml")).data.max_length == 1024


def test_rows_that_are_no_pairs_are_told(tmp_path, model, capsys):
    jsonl(tmp_path / "rows.jsonl", [{"text": json.dumps(row)} for row in PAIRS])
    assert init(tmp_path, "--model", str(model), "--data", str(tmp_path / "rows.jsonl"), "tokenizer.path=bytes") == 0
    said = capsys.readouterr().out
    assert "no row of data.train can be read as a pair: " in said and "data.columns names your columns" in said
