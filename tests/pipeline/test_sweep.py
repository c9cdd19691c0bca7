"""A sweep before anything is trained, and in one process without Ray: names, mistakes, failures, kills, the table."""

import argparse
import io
import json
import os
import re
from contextlib import redirect_stdout
from importlib import import_module

import pytest

from pipeline.cli.sweep import sweep
from tests.pipeline.files import config_file, jsonl
from tests.pipeline.lab import Lab, Stopped, made, without_ray
from tests.pipeline.test_cli import refused

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
RUN = {"name": "one", "dir": "runs", "workspace": "workspace"}


def refused_sweep(tmp_path, capsys, *words, **sections):
    """What is said; nothing was made."""
    jsonl(tmp_path / "a.jsonl", [PAIR] * 8)
    path = config_file(tmp_path, **{"run": RUN, "data": {"train": "a.jsonl"}, **sections})
    said = refused(capsys, "sweep", path, *words)
    assert not (tmp_path / "runs").exists()
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("loss.beta=0.1", "sweep needs at least one key with several values, for example loss.beta=0.05,0.1"),
        (
            "loss.beta=0.1,-1 train.epochs=1,2",
            "with loss.beta=-1 train.epochs=1: override: loss.beta = -1: it must be greater than 0 (2 of 4 "
            "combinations cannot be run)",
        ),
        ("loss.beta=0.1,0.2,-1 --random 1", "with loss.beta=-1: override: loss.beta = -1: it must be greater than 0"),
        ("loss.beta=0.1,0.2 train.epochs=0", "override: train.epochs = 0: it must be greater than or equal to 1"),
        ("loss.beta=0.1,0.10", "2 combinations are loss.beta=0.1. Write every value once."),
        (
            'data.train="none.jsonl","a.jsonl"',
            "with data.train={folder}/none.jsonl: data.train = '{folder}/none.jsonl': does not exist.",
        ),
        (
            "loss.kind=ipo,sigmoid loss.label_smoothing=0.1,0.2",
            "with loss.kind=ipo loss.label_smoothing=0.1: override: loss.label_smoothing = 0.1: there is no such key;",
        ),
        ("report.trackers=[],[wandb]", "with report.trackers=[wandb]: override: report.trackers = '[wandb]': it must"),
    ],
)
def test_a_mistake_in_any_combination_is_found_before_anything_is_made(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert refused_sweep(tmp_path, capsys, *words.split()).startswith(said.format(folder=tmp_path))


def test_a_name_that_stands_for_other_settings_is_refused_with_the_combination(tmp_path, capsys):
    jsonl(tmp_path / "a.jsonl", [PAIR] * 8)
    path = config_file(tmp_path, run=RUN, data={"train": "a.jsonl"})
    folder = tmp_path / "runs" / "one--loss.beta-0.2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"loss": {"kind": "ipo"}}), encoding="utf-8")
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    said = refused(capsys, "sweep", path, "loss.beta=0.1,0.2")
    assert said.startswith("with loss.beta=0.2: run.name = 'one--loss.beta-0.2' belongs to a run with other settings: ")


def test_a_run_with_several_values_is_told_of_the_sweep(tmp_path, capsys):
    said = refused(capsys, "run", config_file(tmp_path), "loss.beta=0.1,0.2")
    assert said.endswith("it must be a valid number; several values are tried by ray-align sweep")


# In one process


def run_sweep(folder, words, stop_at=None, stop_in=None):
    """Run a sweep in this process, which takes part in a process group; returns its status and what it printed.

    Args:
        stop_at: the step of the run `stop_in` whose rows never arrive.
    """
    program = import_module("pipeline.run")
    os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
    done, out = [], io.StringIO()
    run = program.run
    without_ray()

    def counted(config, **settings):
        done.append(config.run.name)
        without_ray(stop_at if config.run.name == stop_in else None)
        return run(config, **settings)

    given = argparse.Namespace(config=str(folder / "tiny.toml"), overrides=list(words), random=None)
    with redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "run", counted)
        try:
            status = sweep(given)
        except Stopped:
            status = "stopped"
    return status, out.getvalue(), done


WORDS = ("loss.beta=0.1,2", "train.learning_rate=1e-3,2e-3")
NAMES = [
    f"base--loss.beta-{beta}--train.learning_rate-{rate}" for beta in ("0.1", "2.0") for rate in ("0.001", "0.002")
]
SWEEP = "base--sweep--loss.beta--train.learning_rate"


def summary(folder, name):
    return json.loads((folder / "runs" / name / "summary.json").read_text(encoding="utf-8"))


def swept(folder):
    return json.loads((folder / "runs" / SWEEP / "sweep.json").read_text(encoding="utf-8"))


def table(printed):
    return [line for line in printed.splitlines() if line.startswith(("│", "┃"))]


def results(rows):
    """What does not depend on when and in which sweep a run was trained."""
    but = ("run", "settings", "seconds", "pairs_per_second")
    return [{key: value for key, value in row.items() if key not in but} for row in rows]


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A lab, the folder of a whole sweep, and what it answered."""
    lab = Lab(tmp_path_factory.mktemp("group") / "group")
    folder = made(tmp_path_factory.mktemp("swept") / "lab")
    yield lab, folder, lab.call(run_sweep, folder, WORDS)
    lab.close()


@pytest.mark.group
def test_a_sweep_runs_every_combination_and_scores_once(sweeps):
    _, folder, (status, printed, done) = sweeps
    assert (status, done) == (0, NAMES)
    scored = [summary(folder, name)["sequences_scored"] for name in NAMES]
    assert scored == [2 * (48 + 12), 0, 0, 0]
    assert "4 runs, 0 of them finished before" in printed
    assert "run 2 of 4: loss.beta=0.1 train.learning_rate=0.002" in printed
    assert len(list((folder / "workspace" / "tokens").iterdir())) == 1


@pytest.mark.group
def test_the_table_is_by_accuracy_then_loss(sweeps):
    _, folder, (_, printed, _) = sweeps
    rows = swept(folder)["runs"]
    keys = [(-row["held_out_accuracy"], row["held_out_loss"]) for row in rows]
    assert keys == sorted(keys) and len({*keys}) == 4
    assert sorted(row["run"] for row in rows) == NAMES
    assert rows[0]["settings"] == {
        "loss.beta": summary_setting(folder, rows[0], "loss", "beta"),
        "train.learning_rate": summary_setting(folder, rows[0], "train", "learning_rate"),
    }
    assert all(row["state"] == "finished" and row["steps"] == 6 for row in rows)
    body = table(printed)[-4:]
    assert [re.split("│", line)[1].strip() for line in body] == ["1", "2", "3", "4"]
    assert [float(re.split("│", line)[2]) for line in body] == [row["settings"]["loss.beta"] for row in rows]
    assert "The best run is the first, by held-out accuracy, then held-out loss." in printed


def summary_setting(folder, row, section, key):
    return json.loads((folder / "runs" / row["run"] / "config.json").read_text(encoding="utf-8"))[section][key]


@pytest.mark.group
def test_the_page_has_a_picture_of_each_result_against_each_key(sweeps):
    _, folder, _ = sweeps
    page = (folder / "runs" / SWEEP / "sweep.html").read_text(encoding="utf-8")
    for result in ("held-out accuracy", "held-out loss", "held-out margin"):
        assert f"{result} against loss.beta" in page and f"{result} against train.learning_rate" in page
    assert all(f'<a href="../{name}/report.html">{name}</a>' in page for name in NAMES)


@pytest.mark.group
def test_the_same_command_does_nothing_and_prints_the_same_table(sweeps):
    """However its words are written."""
    lab, folder, (_, printed, _) = sweeps
    before = swept(folder)
    status, again, done = lab.call(run_sweep, folder, ("train.learning_rate=2e-3,0.001", "loss.beta=2.0,0.1"))
    assert (status, done) == (0, [])
    assert "4 runs, 4 of them finished before" in again
    assert table(again) == table(printed) and swept(folder) == before


@pytest.mark.group
def test_a_sweep_that_was_killed_goes_on_and_ends_with_the_same_table(sweeps, tmp_path):
    """A smaller one, whose runs are two of the whole one."""
    lab, whole, _ = sweeps
    folder, words, names = made(tmp_path / "lab"), ("loss.beta=0.1,2",), ["base--loss.beta-0.1", "base--loss.beta-2.0"]
    assert lab.call(run_sweep, folder, words, 5, names[1])[0] == "stopped"
    assert not (folder / "runs" / names[1] / "summary.json").exists()
    status, printed, done = lab.call(run_sweep, folder, words)
    assert (status, done) == (0, names[1:])
    assert "2 runs, 1 of them finished before" in printed
    attempts = (folder / "runs" / names[1] / "checkpoints" / "attempts.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["from_step"] for line in attempts.splitlines()] == [0, 4]
    ours = json.loads((folder / "runs" / "base--sweep--loss.beta" / "sweep.json").read_text(encoding="utf-8"))["runs"]
    theirs = [row for row in swept(whole)["runs"] if row["settings"]["train.learning_rate"] == 1e-3]
    assert results(ours) == results(theirs)


@pytest.mark.group
def test_a_run_that_diverges_is_a_row_and_the_others_are_trained(sweeps):
    lab, folder, _ = sweeps
    words = ("loss.beta=0.1,2", "train.learning_rate=1e-3,1e30")
    status, printed, done = lab.call(run_sweep, folder, words)
    assert status == 1
    assert len(done) == 2 and all("--train.learning_rate-1e30-" in name for name in done)
    rows = swept(folder)["runs"]
    assert [row["state"].partition(":")[0] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert all("the loss is nan" in row["state"] for row in rows[2:])
    assert "failed: " in printed
