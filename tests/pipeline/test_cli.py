import errno
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from pipeline import Config, cli, run
from pipeline.run import STAGES
from tests.pipeline.files import config_file, fill_cache, jsonl, token_rows
from tests.pipeline.verbs import VERBS
from tests.places import ROOT

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
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


def left_with(status, capsys, *arguments):
    """What is printed where argparse ends the program: on stdout for status 0, else on stderr."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert left.value.code == status
    out, error = capsys.readouterr()
    assert (out if status else error) == ""
    return error if status else out


def program(*arguments, command=("-m", "pipeline")):
    """The exit status and both outputs of a program of its own."""
    done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


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


@pytest.mark.parametrize("arguments", [["run"], ["run", "a.toml", "--fast"]])
def test_arguments_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ray-align run CONFIG.toml [section.field=value ...]")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config x.toml --fail-on error", "config has no option --fail-on; it belongs to ray-align doctor"),
        ("run --fail-on=error x.toml a.b=1", "run has no option --fail-on; it belongs to ray-align doctor"),
        ("--fail-on error doctor x.toml", "ray-align has no option --fail-on; it belongs to ray-align doctor"),
        ("cache ls x.toml --rows 3", "cache ls has no option --rows; it belongs to ray-align cache verify"),
        ("cache ls x.toml --unused-days 3", "has no option --unused-days; it belongs to ray-align cache gc"),
        ("cache gc x.toml --rows 3 a.b=1", "cache gc has no option --rows; it belongs to ray-align cache verify"),
        ("doctor x.toml --rows 3", "doctor has no option --rows; it belongs to ray-align cache verify"),
        ("run --version", "run has no option --version; it stands without a verb: ray-align --version"),
        ("config x.toml --keys", "config has no option --keys; it stands without a verb: ray-align --keys"),
        ("config x.toml a.b=1 --fast c.d=2", "config has no option --fast; see ray-align config --help"),
        ("doctor x.toml --fail error", "has no option --fail; did you mean ray-align doctor --fail-on?"),
        ("--keyz", "ray-align has no option --keyz; did you mean ray-align --keys?"),
        ("-x", "ray-align has no option -x; see ray-align --help"),
    ],
)
def test_an_option_that_the_verb_does_not_have_is_refused_with_where_it_belongs(line, message, capsys):
    assert left_with(2, capsys, *line.split()).endswith(f"{message}\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian x.toml", "invalid choice: 'trian'; did you mean 'train'? (choose from run, prepare, "),
        ("zzz x.toml", "invalid choice: 'zzz' (choose from run, prepare, "),
        ("cache verfy x.toml", "invalid choice: 'verfy'; did you mean 'verify'? (choose from ls, verify, gc)"),
        ("my.toml", "the verb before my.toml is missing; write for example ray-align run my.toml (choose from run, "),
        ("cache my.toml", "the verb before my.toml is missing; write for example ray-align cache ls my.toml (choose "),
        ("cache", "the verb is missing (choose from ls, verify, gc)"),
        ("run", "the following arguments are required: CONFIG.toml"),
        ("compare", "the following arguments are required: RUN"),
        ("sweep x.toml --random 0", "'0' is no number of runs; give a whole number from 1"),
        ("run x.toml --random 3", "run has no option --random; it belongs to ray-align sweep"),
        ("run x.toml --html a.html", "run has no option --html; it belongs to ray-align compare"),
        ("doctor x.toml --fail-on awful", "argument --fail-on: invalid choice: 'awful' (choose from "),
        ("cache verify x.toml --rows 0", "'0' is no number of sequences; give a whole number from 1"),
        ("cache verify x.toml --rows 1.5", "'1.5' is no number of sequences; give a whole number from 1"),
        ("cache gc x.toml --unused-days -1", "'-1' is no number of days; give a number from 0, such as 90 or 0.5"),
        ("cache gc x.toml --unused-days nan", "'nan' is no number of days; "),
        ("cache gc x.toml --unused-days ten", "'ten' is no number of days; "),
    ],
)
def test_a_command_line_that_does_not_fit_is_refused_with_what_would(line, message, capsys):
    assert message in left_with(2, capsys, *line.split())


def test_a_file_of_any_name_in_place_of_the_verb_is_known_for_one(tmp_path, capsys):
    path = tmp_path / "settings"
    path.touch()
    assert f"the verb before {path} is missing; " in left_with(2, capsys, str(path))


@pytest.mark.parametrize(
    "order",
    [
        "FILE --fail-on warning loss.beta=-1 train.epochs=0",
        "FILE loss.beta=-1 train.epochs=0 --fail-on warning",
        "FILE loss.beta=-1 --fail-on=warning train.epochs=0",
        "--fail-on warning FILE loss.beta=-1 train.epochs=0",
    ],
)
def test_overrides_stand_before_or_behind_options(order, tmp_path, capsys):
    """Both are taken as overrides; they are wrong, so that the doctor need not come."""
    words = order.replace("FILE", config_file(tmp_path)).split()
    assert sorted(refused(capsys, "doctor", *words).splitlines()) == [
        "override: loss.beta = -1: it must be greater than 0",
        "override: train.epochs = 0: it must be greater than or equal to 1",
    ]


@pytest.mark.parametrize("words", ["--unused-days 8 OVERRIDE", "OVERRIDE --unused-days 8"])
def test_an_option_and_an_override_both_arrive(words, tmp_path, capsys):
    """The override says where the cache is, the option which of its models goes."""
    kept, old = (fill_cache(tmp_path / "elsewhere" / name, token_rows(6), parts=3) for name in ("kept", "old"))
    for cache, days in ((kept, 7), (old, 9)):
        cache.folder.write("used.json", json.dumps({"time": time.time() - days * 24 * 60 * 60}).encode())
    words = words.replace("OVERRIDE", f"reference.cache={tmp_path / 'elsewhere'}").split()
    assert cli.main(["cache", "gc", config_file(tmp_path), *words]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("kept: 3 parts -> 1, ")
    assert second == "old: removed, not used for 9 days"


def test_a_cache_without_its_description_is_listed(tmp_path, capsys):
    fill_cache(tmp_path / "cache/one", token_rows(1), parts=1)
    assert cli.main(["cache", "ls", config_file(tmp_path, reference={"cache": "cache"})]) == 0
    assert "?" in capsys.readouterr().out


def test_an_interrupted_command_has_its_exit_status(tmp_path):
    """It is interrupted while it reads its configuration, a pipe that gives nothing."""
    path = tmp_path / "slow.toml"
    os.mkfifo(path)
    command = [sys.executable, "-m", "pipeline", "config", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as started:
        writer = open_once_read(path, started)
        started.send_signal(signal.SIGINT)
        error = started.communicate(timeout=60)[1]
        os.close(writer)
    assert (started.returncode, error) == (130, "ray-align: stopped; run the same command to continue\n")


def open_once_read(path, reader):
    """The writing end of a pipe, as soon as a program has the other end open."""
    while reader.poll() is None:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO  # nobody reads yet
            time.sleep(0.02)
    raise AssertionError(f"the program ended with status {reader.returncode} before it read {path}")


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    listed = re.search(r"\{(.+?)\}", capsys.readouterr().out).group(1)
    assert listed.split(",") == VERBS


def test_what_a_bug_report_needs_is_printed_without_secrets(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page = left_with(0, capsys, "--env")
    lines = dict(line.split(maxsplit=1) for line in page.splitlines())
    assert (lines["torch"], lines["HF_TOKEN"], lines["HF_HUB_OFFLINE"]) == (torch.__version__, "(set)", "1")
    assert {"ray-align", "python", "ray", "deepspeed", "system", "CPUs", "memory", "GPUs"} <= lines.keys()
    assert "hunter2" not in page
    assert "env is an option: ray-align --env" in left_with(2, capsys, "env")


@pytest.mark.parametrize("arguments", ["", "--version", "cache verify --help", "trian x.toml", "run none.toml"])
def test_python_m_pipeline_is_ray_align(arguments):
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="ray-align")
    called = f"import sys; from {command.module} import {command.attr} as main; sys.exit(main())"
    done = program(*arguments.split())
    assert done == program(*arguments.split(), command=("-c", called))
    assert done[1] + done[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run x.toml --beta 0.2", "no option --beta; write loss.beta=0.2 behind the file, without dashes"),
        ("run x.toml --beta=0.2", "no option --beta; write loss.beta=0.2 behind the file, without dashes"),
        ("run x.toml --loss.beta 0.2", "no option --loss.beta; write loss.beta=0.2 behind the file"),
        ("run x.toml --learning-rate 1e-6", "write train.learning_rate=1e-6 behind the file"),
        ("train x.toml --num_train_epochs 2 --beta 1", "write train.epochs=2 behind the file"),
        ("train x.toml --lr", "write train.learning_rate=VALUE behind the file"),
        ("run x.toml --micro_batch_size 2", "the key is train.micro_batch_tokens: it counts tokens"),
        ("run x.toml --streaming", "no option --streaming; data are always streamed"),
        ("run --config x.toml", "no option --config; the file stands without an option, as in ray-align run my.toml"),
        ("--beta 0.2 run x.toml", "write loss.beta=0.2 behind the file"),
        ("my.yaml", "the verb before my.yaml is missing"),
    ],
)
def test_an_option_of_others_is_answered_with_the_key(line, said, capsys):
    assert said in left_with(2, capsys, *line.split())


def test_null_unsets_a_key(tmp_path, capsys):
    path = config_file(tmp_path, tokenizer={"path": "bytes", "eos_token": "<end>"})
    assert cli.main(["config", path, "tokenizer.eos_token=null"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == {
        "path": "bytes",
        "eos_token": None,
        "chat_template": None,
        "template_options": {},
    }
    assert cli.main(["config", path, "loss.beta=null"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]["beta"] == 0.1  # the default
    assert "data.train is missing" in refused(capsys, "config", path, "data.train=null")


def test_a_configuration_is_read_without_loading_ray_or_torch(tmp_path):
    check = "import sys, pipeline.cli as c; c.main(sys.argv[1:]); assert not {'ray', 'torch'} & set(sys.modules)"
    command = [sys.executable, "-c", check, "config", config_file(tmp_path)]
    subprocess.run(command, capture_output=True, check=True, cwd=ROOT)


@pytest.mark.parametrize("arguments", ["--help", "--keys", "doctor --help", "cache gc --help", "run FILE loss.bta=1"])
def test_help_keys_and_a_misspelt_key_are_answered_without_loading_ray_or_torch(arguments, tmp_path):
    check = (
        "import sys, pipeline.cli as c\ntry: c.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    words = arguments.replace("FILE", config_file(tmp_path)).split()
    assert program(*words, command=("-c", check))[0] == 0


def test_there_is_no_other_stage(tmp_path):
    with pytest.raises(ValueError, match="no stage 'trian'; there are prepare, sft, score"):
        run(Config.load(config_file(tmp_path, run=RUN)), "trian")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.toml"]


def test_nothing_but_the_json_is_on_stdout(tmp_path):
    """As a program of its own, where no library has been imported: some greet on stdout as they load."""
    command = [sys.executable, "-m", "pipeline", "config", config_file(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["policy"]["kind"] == "x-transformers"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_cache_is_not_verified_on_gpus_that_are_not_there(tmp_path, capsys):
    """One sentence and exit 2, as for a run; without a traceback from a model that was put on no device."""
    path = config_file(tmp_path, run=RUN, data={"train": str(jsonl(tmp_path / "a.jsonl", [PAIR] * 2))})
    assert cli.main(["cache", "verify", path, "reference.gpus_per_actor=1"]) == 2
    assert capsys.readouterr().err == (
        "ray-align: reference.gpus_per_actor asks for 1 GPU(s) in all and this machine has 0. Set "
        "reference.gpus_per_actor = 0 to use CPUs.\n"
    )
