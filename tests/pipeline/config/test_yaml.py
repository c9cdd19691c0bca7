"""A configuration in YAML is the one in TOML."""

import pytest
import yaml

from pipeline.config import Config
from pipeline.errors import ConfigError
from tests.pipeline.config.test_sections import EVERY_KEY
from tests.pipeline.files import config_file

LEAST = "data:\n  train: a.jsonl\npolicy:\n  kind: x-transformers\n"


def load(folder, text, *overrides, name="run.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return Config.load(str(path), list(overrides))


def refused(folder, text, **more):
    with pytest.raises(ConfigError) as error:
        load(folder, text, **more)
    return str(error.value)


def test_every_key(tmp_path):
    assert load(tmp_path, yaml.safe_dump(EVERY_KEY)) == Config.load(config_file(tmp_path, **EVERY_KEY))


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    config = load(tmp_path, LEAST + "train:\n  learning_rate: 5e-7\nloss:\n  beta: .5\nrun:\n  name: on\n  seed: 010\n")
    assert (config.train.learning_rate, config.loss.beta, config.run.name, config.run.seed) == (5e-7, 0.5, "on", 10)
    assert load(tmp_path, LEAST + "run:\n  name: 2026-11-26\n").run.name == "2026-11-26"
    assert load(tmp_path, LEAST.replace("a.jsonl", "a.jsonl\n  eval: null")).data.eval is None
    assert load(tmp_path, LEAST + "train:\n  epochs: null\nloss:\n").train.epochs == 1


def test_paths_are_relative_to_the_file_and_overrides_apply(tmp_path):
    config = load(tmp_path, LEAST, "loss.beta=0.2", name="run.yml")
    assert (config.data.train, config.loss.beta) == (str(tmp_path / "a.jsonl"), 0.2)


def test_losses_are_a_list(tmp_path):
    config = load(tmp_path, LEAST + "loss:\n  - kind: sigmoid\n  - kind: sft\n    weight: 0.5\n")
    assert [(term.kind, term.weight) for term in config.mixture] == [("sigmoid", 1.0), ("sft", 0.5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "is not valid YAML: "),
        ("loss:\n  beta: 1\n  beta: 2\n", "is not valid YAML: beta stands twice (at line 2)"),
        ("1: 2\n", "is not valid YAML: the key 1 is no word (at line 1)"),
        ("? [a, b]\n: 2\n", "is not valid YAML: "),
        ("- a\n", "holds no sections"),
        ("just words\n", "holds no sections"),
        ("!!python/object/apply:os.system [ls]\n", "is not valid YAML: "),
        (LEAST + "loss:\n  beta: inf\n", "loss.beta = 'inf': it must be a valid number"),
        (LEAST + "loss:\n  beta: .inf\n", "loss.beta = inf: it must be a finite number"),
        ("", "[data] is missing"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, text, said):
    assert said in refused(tmp_path, text)


def test_yaml_under_the_name_of_toml(tmp_path):
    assert refused(tmp_path, LEAST, name="run.toml").endswith("It looks like YAML: let its name end in .yaml.")
