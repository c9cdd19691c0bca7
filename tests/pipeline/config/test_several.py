"""Which overrides list several values, which combinations they make, and what their runs are called."""

import json
import random
import re

import pytest

from pipeline.config import Config
from pipeline.config.section import NAME
from pipeline.config.several import plain, read_grid, run_name, said, several, split, sweep_name, values_of
from pipeline.errors import ConfigError
from tests.pipeline.files import config_file


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0.1,0.2", ["0.1", "0.2"]),
        ("[0.9, 0.95],[1, 2]", ["[0.9, 0.95]", "[1, 2]"]),
        ("{ a = 1, b = 2 }", ["{ a = 1, b = 2 }"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'it\"s, so',[']',2]", ["'it\"s, so'", "[']',2]"]),
        ("0.1,", ["0.1", ""]),
        ("a", ["a"]),
    ],
)
def test_a_text_is_parted_at_commas_outside_brackets_and_quotes(text, parts):
    assert split(text) == parts


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("loss.beta", "0.05,0.1", ["0.05", "0.1"]),
        ("loss.beta", "0.05", None),
        ("loss.kind", "ipo,sigmoid", ["ipo", "sigmoid"]),
        ("train.schedule", "linear,cosine", ["linear", "cosine"]),
        ("cluster.workers", "[1, 2]", None),
        ("cluster.workers", "1,[1, 2]", ["1", "[1, 2]"]),
        ("data.train", "a,b.jsonl", None),  # a file of that name
        ("data.train", '"a.jsonl","b.jsonl"', ["'a.jsonl'", "'b.jsonl'"]),
        ("data.eval", "0.05,0.1", ["0.05", "0.1"]),
        ("policy.path", "a,b", None),
        ("policy.adapter.r", "8,16", ["8", "16"]),
        ("policy.adapter.target_modules", "q_proj,v_proj", None),
        ("policy.adapter.use_dora", "true,false", ["true", "false"]),
        ("tokenizer.template_options.thinking", "true,false", ["true", "false"]),
        ("tokenizer.template_options.style", "a,b", None),
        ("tokenizer.chat_template", "{{ a, b }}", None),
        ("reference.guard_tolerance", "null,1e-3", ["null", "1e-3"]),
    ],
)
def test_a_value_with_commas_is_several_unless_its_key_takes_it_as_it_is(key, text, values):
    found = several(Config, key, text)
    assert found == (values if values is None else [value.replace("'", '"') for value in values])


WRONG = [
    (["loss.beta=0.1"], "sweep needs at least one key with several values, for example loss.beta=0.05,0.1"),
    ([], "sweep needs at least one key with several values, for example loss.beta=0.05,0.1"),
    (["loss.beta=0.1,,0.2"], "loss.beta=0.1,,0.2: a value between two commas is missing."),
    (["loss.beta=0.1,0.2,0.1"], "loss.beta=0.1,0.2,0.1: 0.1 stands twice. Write every value once."),
    (["loss.beta=0.1,0.2", "loss.beta=1,2"], "loss.beta=1,2: loss.beta is listed twice."),
    (["run.name=1,2"], "run.name=1,2: run.name is one for all runs of a sweep."),
    (
        ["beta=a,b"],
        "cannot read the override 'beta=a,b'; write section.field=value, as in loss.beta=0.05",
    ),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_what_is_no_grid_is_refused_in_words(words, message):
    with pytest.raises(ConfigError) as error:
        read_grid(Config, words)
    assert str(error.value).startswith(message)


def test_a_grid_has_every_combination_once_whatever_the_order_of_the_words():
    grid = read_grid(Config, ["train.learning_rate=1e-6,5e-6", "run.seed=3", "loss.beta=0.05,0.1,0.5"])
    found = [grid.words(number) for number in range(grid.size)]
    betas, rates = ("0.05", "0.1", "0.5"), ("1e-6", "5e-6")
    assert found == [[f"loss.beta={beta}", f"train.learning_rate={rate}"] for beta in betas for rate in rates]
    assert grid.fixed == ["run.seed=3"]
    other = read_grid(Config, ["loss.beta=0.05,0.1,0.5", "run.seed=3", "train.learning_rate=1e-6,5e-6"])
    assert other == grid


def test_the_edges_of_a_grid_have_every_value():
    grid = read_grid(Config, ["loss.beta=1,2,3", "run.seed=4,5", "train.epochs=6,7,8"])
    words = [grid.words(number) for number in grid.edges()]
    assert {word for each in words for word in each} == {
        *(f"loss.beta={n}" for n in (1, 2, 3)),
        *(f"run.seed={n}" for n in (4, 5)),
        *(f"train.epochs={n}" for n in (6, 7, 8)),
    }
    assert len(words) == 1 + 2 + 1 + 2


def test_combinations_are_drawn_by_the_seed_and_none_twice():
    grid = read_grid(Config, ["loss.beta=1,2,3,4,5", "run.seed=1,2,3,4"])
    drawn = grid.drawn(6, 0)
    assert len(set(drawn)) == 6 and drawn == sorted(drawn) and set(drawn) <= set(range(20))
    assert grid.drawn(6, 0) == drawn
    assert len({tuple(grid.drawn(6, seed)) for seed in range(5)}) > 1
    assert grid.drawn(20, 0) == grid.drawn(99, 0) == list(range(20))


# Names


def named(folder, *words):
    config = Config.load(config_file(folder), words)
    return run_name("base", values_of(json.loads(config.model_dump_json()), [word.partition("=")[0] for word in words]))


def test_a_name_says_the_settings_however_they_are_written(tmp_path):
    expected = "base--loss.beta-0.05--train.learning_rate-1e-06"
    assert named(tmp_path, "loss.beta=0.05", "train.learning_rate=1e-6") == expected
    assert named(tmp_path, "loss.beta=5e-2", "train.learning_rate=0.000001") == expected
    assert named(tmp_path, "loss.beta=1") == named(tmp_path, "loss.beta=1.0") == "base--loss.beta-1.0"
    assert named(tmp_path, "loss.kind=ipo", "loss.wpo=true") == "base--loss.kind-ipo--loss.wpo-true"


def test_values_with_other_letters_have_their_digest_in_the_name():
    paths = [f"/models/{number}/the one" for number in range(50)] + [
        "[0.9, 0.95]",
        "1e+20",
        "é",
        "",
        "x" * 300,
        "x" * 301,
    ]
    names = [run_name("base", {"policy.path": path}) for path in paths]
    assert len({*names}) == len(paths)
    assert names[7].startswith("base--policy.path-models-7-the-one-")
    assert names[50].startswith("base--policy.path-0.9-0.95-")


def test_names_are_those_of_a_folder_and_of_a_run():
    draw = random.Random(0)
    letters = "abc/ .,-_+={}[]\"'é\n0123456789"
    for _ in range(300):
        values = {
            f"section.{key}/{draw.choice(letters)}": "".join(draw.choices(letters, k=draw.randrange(90)))
            for key in range(draw.randrange(1, 8))
        }
        for name in (run_name("base", values), sweep_name("base", [*values])):
            assert re.fullmatch(NAME, name) and len(name) <= 200
            assert name.startswith("base--")


def test_settings_are_said_as_they_are_typed():
    values = {"loss.beta": 0.05, "tokenizer.eos_token": None, "loss.kind": "ipo", "cluster.workers": [1, 2]}
    assert said(values) == "loss.beta=0.05 tokenizer.eos_token=null loss.kind=ipo cluster.workers=[1, 2]"
    assert plain(True) == "true"


def test_values_inside_a_table_are_found():
    settings = {"policy": {"adapter": {"r": 8}}, "loss": {"beta": 0.1}}
    keys = ["policy.adapter.r", "loss.beta", "policy.adapter.none", "tokenizer.path"]
    assert values_of(settings, keys) == {keys[0]: 8, keys[1]: 0.1, keys[2]: None, keys[3]: None}
