import json
import re
import subprocess
import sys

import pytest

from pipeline import Config, cli, run
from pipeline.run import STAGES
from tests.pipeline.files import config_file, jsonl
from tests.places import ROOT

RUN = {"name": "one", "dir": "runs", "workspace": "workspace"}


def refused(capsys, *arguments):
    """What stands on stderr: one paragraph and no traceback. Nothing on stdout."""
    assert cli.main(list(arguments)) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("ray-align: ")
    assert error.endswith("\n")
    assert "\n\n" not in error
    assert "Traceback" not in error
    return error.removeprefix("ray-align: ").removesuffix("\n")


def test_config_prints_what_applies_as_json(tmp_path, capsys):
    path = config_file(tmp_path, loss={"beta": 0.3}, run=RUN)
    assert cli.main(["config", path, "loss.beta=0.7", "run.name=softer"]) == 0
    out, error = capsys.readouterr()
    config = json.loads(out)
    assert error == ""
    assert (config["loss"]["beta"], config["run"]["name"]) == (0.7, "softer")
    assert config["run"]["dir"] == str(tmp_path / "runs")
    assert config["train"]["learning_rate"] == 1e-6  # a default
    assert list(tmp_path.iterdir()) == [tmp_path / "run.toml"]  # it only looks


def test_a_wrong_configuration_is_one_paragraph(tmp_path, capsys):
    path = config_file(tmp_path, loss={"bta": 0.3}, train={"epochs": 0})
    for verb in ("config", "run", "prepare"):
        lines = refused(capsys, verb, path).splitlines()
        assert sorted(lines) == [
            f"{path}: loss.bta = 0.3: there is no such key; did you mean 'beta'?",
            f"{path}: train.epochs = 0: it must be greater than or equal to 1",
        ]


def test_a_wrong_override_or_no_file(tmp_path, capsys):
    assert refused(capsys, "config", config_file(tmp_path), "loss.beta") == (
        "cannot read the override 'loss.beta'; write section.field=value, as in loss.beta=0.05"
    )
    assert refused(capsys, "run", "none.toml").startswith("no configuration at none.toml: ")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"data": {"train": "none.jsonl"}}, "data.train = '{folder}/none.jsonl': does not exist."),
        ({"data": {"train": "run.toml"}}, "data.train = '{folder}/run.toml': only .jsonl, .ndjson"),
        ({"data": {"train": "a.jsonl", "eval": "none.jsonl"}}, "data.eval = '{folder}/none.jsonl': does not exist."),
        ({"deepspeed": {"config": "none.json"}}, "deepspeed.config = '{folder}/none.json': No such file or directory"),
        ({"tokenizer": {"path": "./none"}}, "tokenizer.path = '{folder}/none': there is no such folder."),
        ({"run": {**RUN, "dir": "run.toml/below"}}, "run.dir: cannot write to {folder}/run.toml/below/one: Not a dir"),
    ],
    ids=lambda value: value[:14] if isinstance(value, str) else "",
)
def test_what_is_wrong_outside_the_configuration_is_found_before_ray_starts(tmp_path, capsys, sections, expected):
    jsonl(tmp_path / "a.jsonl", [])
    path = config_file(tmp_path, **{"run": RUN, "data": {"train": "a.jsonl"}, **sections})
    assert refused(capsys, "prepare", path).startswith(expected.format(folder=tmp_path))


def test_an_unknown_verb_is_refused_with_those_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["trian", config_file(tmp_path)])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'trian'" in error
    assert all(stage in error for stage in STAGES)


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "a.toml", "--fast"]])
def test_arguments_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ray-align VERB CONFIG.toml [section.field=value ...]")


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    listed = re.search(r"\{(.+?)\}", capsys.readouterr().out).group(1)
    assert listed.split(",") == ["run", *STAGES, "doctor", "config", "cache"]


def test_keys_lists_every_key_with_its_default_and_choices(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--keys"])
    assert left.value.code == 0
    page = capsys.readouterr().out
    sections = re.findall(r"^\[(\w+)\]", page, re.M)
    assert list(dict.fromkeys(sections)) == list(Config.model_fields)
    lines = re.findall(r"^(\w+) = (.+?)(?: +# (.+))?$", page, re.M)
    assert ("beta", "0.1", "The pull to the reference; a larger beta keeps the policy closer to it.") in lines
    assert ("schedule", '"linear"') in [line[:2] for line in lines]
    assert next(about for key, _, about in lines if key == "truncation").startswith('one of "keep_start", "keep_end"')
    assert len(lines) == sum(page.count(f"\n{key} = ") for key in {key for key, *_ in lines})


def test_null_unsets_a_key(tmp_path, capsys):
    path = config_file(tmp_path, tokenizer={"path": "bytes", "eos_token": "<end>"})
    assert cli.main(["config", path, "tokenizer.eos_token=null"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == {
        "path": "bytes",
        "eos_token": None,
        "chat_template": None,
        "template_options": {},
    }
    assert "loss.beta = None: it must be a valid number" in refused(capsys, "config", path, "loss.beta=null")


def test_a_configuration_is_read_without_loading_ray_or_torch(tmp_path):
    check = "import sys, pipeline.cli as c; c.main(sys.argv[1:]); assert not {'ray', 'torch'} & set(sys.modules)"
    command = [sys.executable, "-c", check, "config", config_file(tmp_path)]
    subprocess.run(command, capture_output=True, check=True, cwd=ROOT)


def test_there_is_no_other_stage(tmp_path):
    with pytest.raises(ValueError, match="no stage 'trian'; there are prepare, sft, score"):
        run(Config.load(config_file(tmp_path, run=RUN)), "trian")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.toml"]


def test_nothing_but_the_json_is_on_stdout(tmp_path):
    """As a program of its own, where no library has been imported: some greet on stdout as they load."""
    command = [sys.executable, "-m", "pipeline", "config", config_file(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["policy"]["kind"] == "x-transformers"
