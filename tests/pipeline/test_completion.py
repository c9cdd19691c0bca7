"""`ray-align --completion`: the scripts, and what a real bash completes with one."""

import subprocess
import sys

import pytest

from pipeline import Config
from pipeline.cli.verbs import VERBS
from pipeline.config.keys import values_of_keys
from pipeline.config.load import load
from tests.pipeline.files import config_file
from tests.pipeline.test_cli import left_with, program

shtab = pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """A function from the words of a line to what bash would complete its last word to."""
    folder = tmp_path_factory.mktemp("completion")
    status, script, error = program("--completion", "bash")
    assert (status, error) == (0, "")
    (folder / "script").write_text(script)
    for name in ("my.toml", "my.yaml", "my.jsonl"):
        (folder / name).touch()
    (folder / "runs").mkdir()

    def completed(*words):
        asked = 'COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); $(complete -p ray-align | grep -o "_shtab[a-z_]*")'
        asked = f'source ./script; {asked}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        command = ["bash", "-u", "-c", asked, "bash", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        assert done.stderr == ""
        return sorted(done.stdout.split())

    return completed


def test_bash_completes_verbs_options_and_files(bash):
    assert bash("ray-align", "") == sorted({name.split()[0] for name in VERBS})
    assert bash("ray-align", "ex") == ["export"]
    assert bash("ray-align", "cache", "") == ["gc", "ls", "verify"]
    assert bash("ray-align", "run", "m") == ["my.toml", "my.yaml"]
    assert bash("ray-align", "cache", "ls", "ru") == ["runs"]
    assert bash("ray-align", "run", "my.toml", "--") == ["--help", "--restart", "--trial"]
    assert bash("ray-align", "doctor", "my.toml", "--fail-on", "") == ["error", "note", "warning"]
    assert bash("ray-align", "--co") == ["--completion"]


def test_bash_completes_keys_and_their_values(bash):
    """Bash takes "=" for a word of its own."""
    assert bash("ray-align", "run", "my.toml", "loss.b") == ["loss.beta="]
    assert bash("ray-align", "run", "my.toml", "loss.beta", "=") == ["0.1"]
    assert bash("ray-align", "run", "my.toml", "loss.beta", "=", "0") == ["0.1"]
    assert bash("ray-align", "run", "my.toml", "train.schedule", "=", "co") == ["constant", "cosine"]
    assert bash("ray-align", "run", "my.toml", "train.dtype=bf") == ["train.dtype=bfloat16"]
    assert bash("ray-align", "run", "my.toml", "none.such", "=") == []
    assert bash("ray-align", "run", "--restart", "my.toml", "loss.beta", "=", "1", "policy.adapter.r") == [
        "policy.adapter.r="
    ]
    assert bash("ray-align", "push", "my.toml", "org/name", "run.n") == ["run.name="]


def test_every_value_is_one_that_its_key_takes(tmp_path):
    """Keys of other kinds than the file's are left out."""
    path = config_file(tmp_path)
    plain = {key: given for key, given in values_of_keys(Config).items() if key.split(".")[0] not in ("loss", "policy")}
    assert len(plain) > 80
    given = [f"{key}={values[0]}" for key, values in plain.items() if values]
    load(Config, path, [*given, "data.eval=0.5", "evaluate.every_steps=5"])  # without which nothing is the best
    for key in ("train.schedule", "train.dtype", "data.truncation", "deepspeed.stage", "run.audit"):
        for value in plain[key]:
            load(Config, path, [f"{key}={value}"])
    assert values_of_keys(Config)["loss.kind"][0] == "sigmoid"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_verbs_and_keys(shell, capsys):
    script = left_with(0, capsys, "--completion", shell)
    assert all(word in script for word in ("loss.beta", "doctor", "restart", "*.toml"))
    assert "_ray_align_keys" in script


def test_a_shell_that_is_not_known_is_refused(capsys):
    assert left_with(2, capsys, "--completion", "tcsh").endswith(
        "argument --completion: invalid choice: 'tcsh' (choose from bash, zsh, fish)\n"
    )


def test_no_script_needs_torch_or_ray():
    code = (
        "import sys, pipeline.cli as c\ntry:\n    c.main(['--completion', 'bash'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'ray', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
