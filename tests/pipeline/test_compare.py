"""Runs side by side: folders written by hand, and what is said of what they lack."""

import json
import os
import re
import socket
import time

import pytest

from pipeline import Config, cli
from pipeline.report.results import FINISHED, read_result
from pipeline.store.owner import Owner
from tests.pipeline.files import config_file
from tests.pipeline.test_cli import refused

STAGES = ("prepare", "sft", "score", "order", "train", "evaluate", "export")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def manifest(folder, counts):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"fingerprint": "0" * 16, "counts": counts, "files": {}, "made_of": {}}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def a_run(tmp_path, name, *overrides, steps=4, total=4, done=STAGES, accuracy=0.75, rate=10.0):
    """A run's folder as the program leaves it, of so many of its steps."""
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    config = Config.load(config_file(tmp_path), [f"run.name={name}", "run.dir=runs", *overrides])
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    rows = [{"step": s, "loss": 0.7 - 0.1 * s, "perf/pairs_per_second": rate * s} for s in range(1, steps + 1)]
    if "evaluate" in done:
        metrics = {"eval/loss": 0.5, "eval/rewards/accuracies": accuracy, "eval/rewards/margins": 1.25}
        rows.append({"step": steps, **metrics})
        manifest(folder / "evaluation", {"metrics": metrics, "answers": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manifest(folder / "epochs", {"rows": 32 * total, "steps": total})
    if done:
        counts = {"steps": total, "loss_first": 0.6, "loss_last": 0.3, "weights_step": total}
        summary = {"eval_accuracy": accuracy, **counts, "seconds": dict.fromkeys(done, 1.5)}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def rows_of(printed):
    """The cells of a printed table, by the first cell of each row."""
    found = [[cell.strip() for cell in re.split(r"[│┃]", line)[1:-1]] for line in printed.splitlines()]
    return {row[0]: row[1:] for row in found if row}


def test_what_differs_and_the_results_stand_side_by_side(tmp_path, capsys):
    a_run(tmp_path, "one", accuracy=0.75)
    a_run(tmp_path, "two", "loss.beta=0.5", "train.learning_rate=5e-6", accuracy=0.875)
    assert cli.main(["compare", "one", "runs/two"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows[""] == ["one", "two"]
    assert rows["loss.beta"] == ["0.1", "0.5"]
    assert rows["train.learning_rate"] == ["1e-06", "5e-06"]
    assert {key for key in rows if "." in key} == {"loss.beta", "train.learning_rate"}
    assert rows["held-out accuracy"] == ["0.750", "0.875"]
    assert rows["held-out loss"] == ["0.5000", "0.5000"]
    assert rows["held-out margin"] == ["1.250", "1.250"]
    assert (rows["first loss"], rows["last loss"], rows["steps"]) == (["0.6000"] * 2, ["0.3000"] * 2, ["4", "4"])
    assert (rows["pairs/s"], rows["seconds"]) == (["25.0"] * 2, ["10"] * 2)  # the median step; 7 stages of 1.5 s
    assert rows["state"] == ["finished", "finished"]


def test_a_key_that_only_one_kind_has_is_a_difference(tmp_path, capsys):
    a_run(tmp_path, "one")
    a_run(tmp_path, "two", "loss.kind=simpo")
    assert cli.main(["compare", "one", "two"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["loss.gamma"] == ["-", "0.5"] and rows["loss.wpo"] == ["false", "-"]


def test_equal_settings_are_said_to_be_equal(tmp_path, capsys):
    a_run(tmp_path, "one")
    a_run(tmp_path, "two")
    assert cli.main(["compare", "one", "two"]) == 0
    assert "The runs have the same settings." in capsys.readouterr().out


def test_what_a_run_lacks_is_said(tmp_path):
    def state(name, **given):
        return read_result(a_run(tmp_path, name, **given)).state

    assert state("whole") == FINISHED
    assert state("killed", steps=40, total=75, done=()) == "not finished: stopped at step 40 of 75"
    assert state("new", steps=0, done=()) == "not finished: stopped before its first step"
    assert state("part", done=STAGES[:5]) == "not finished: it was run up to the stage train"
    assert "held_out_accuracy" not in read_result(tmp_path / "runs" / "killed").numbers
    (tmp_path / "runs" / "killed" / "epochs" / "manifest.json").unlink()
    assert read_result(tmp_path / "runs" / "killed").state == "not finished: stopped at step 40"


def test_a_run_that_somebody_works_on_is_not_called_stopped(tmp_path):
    folder = a_run(tmp_path, "busy", steps=2, total=9, done=())
    (folder / "lease.json").write_text(json.dumps(Owner.me()._asdict()), encoding="utf-8")
    said = read_result(folder).state
    assert said.startswith("not finished: ") and said.endswith(" works on it, step 2 of 9")
    assert str(os.getpid()) in said and socket.gethostname() in said


def test_without_its_evaluation_the_metrics_of_the_exported_step_count(tmp_path):
    folder = a_run(tmp_path, "one")
    (folder / "evaluation" / "manifest.json").unlink()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 3, "eval/loss": 9.0, "eval/rewards/accuracies": 0.0}) + "\n")
    numbers = read_result(folder).numbers
    assert (numbers["held_out_accuracy"], numbers["held_out_loss"]) == (0.75, 0.5)


def test_answers_are_measured(tmp_path):
    folder = a_run(tmp_path, "one")
    rows = [{"before": "ab", "after": "abcd"}, {"before": "abcd", "after": "é" * 8}]
    text = "".join(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r", **row}) + "\n" for row in rows)
    (folder / "evaluation" / "answers.jsonl").write_text(text, encoding="utf-8")
    numbers = read_result(folder).numbers
    assert (numbers["answer_before"], numbers["answer_after"]) == (3.0, 6.0)


def test_the_page_has_the_table_and_the_curves_and_escapes_what_it_is_given(tmp_path, capsys):
    a_run(tmp_path, "one", "tokenizer.eos_token=<b>")
    (tmp_path / "runs" / "one" / "report.html").touch()
    a_run(tmp_path, "two", steps=2, done=())
    assert cli.main(["compare", "one", "two", "--html", "pages/both.html"]) == 0
    assert f"report: {tmp_path / 'pages' / 'both.html'}" in capsys.readouterr().out
    page = (tmp_path / "pages" / "both.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert '<a href="../runs/one/report.html">one</a>' in page and ">two</a>" not in page
    assert "not finished: stopped at step 2 of 4" in page
    assert "Loss in training" in page and "Accuracy on the held-out pairs" in page
    assert page.count("data:image/svg+xml") == 2 * page.count("<figure>") == 8  # light and dark
    assert "http://" not in page and "https://" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("one none", "'none' is no run: it has no config.json. The runs in runs are: one, two."),
        ("one runs", "'runs' is no run: it has no config.json. The runs in runs are: one, two."),
        (
            "one two --dir empty",
            "'one' is no run: it has no config.json. There are no runs in empty; --dir names a",
        ),
        ("one", "compare needs two runs or more, and there is only "),
        ("one runs/one", "compare needs two runs or more, and there is only "),
    ],
)
def test_a_wrong_folder_is_refused_with_what_is_there(tmp_path, capsys, words, message):
    a_run(tmp_path, "one")
    a_run(tmp_path, "two")
    (tmp_path / "empty").mkdir()
    assert refused(capsys, "compare", *words.split()).startswith(message)


def test_the_folder_of_a_sweep_stands_for_its_runs(tmp_path, capsys):
    for name in ("one", "two", "three"):
        a_run(tmp_path, name)
    (tmp_path / "runs" / "all").mkdir()
    runs = [{"run": name} for name in ("two", "three", "gone")]
    (tmp_path / "runs" / "all" / "sweep.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    assert cli.main(["compare", "all", "one", "two"]) == 0
    assert rows_of(capsys.readouterr().out)[""] == ["two", "three", "one"]


def test_a_stale_lease_is_nobodys(tmp_path):
    folder = a_run(tmp_path, "left", steps=2, total=9, done=())
    owner = {**Owner.me()._asdict(), "host": "elsewhere"}
    lease = folder / "lease.json"
    lease.write_text(json.dumps(owner), encoding="utf-8")
    os.utime(lease, (time.time() - 1000, time.time() - 1000))
    assert read_result(folder).state == "not finished: stopped at step 2 of 9"


def test_many_runs_stand_below_each_other(tmp_path, capsys):
    for n in range(5):
        a_run(tmp_path, f"run{n}", f"loss.beta=0.{n + 1}", accuracy=n / 8)
    assert cli.main(["compare", *(f"run{n}" for n in range(5))]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [rows[f"run{n}"][:2] for n in range(5)] == [[f"0.{n + 1}", f"{n / 8:.3f}"] for n in range(5)]
