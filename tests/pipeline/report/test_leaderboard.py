"""Who is first, by which results, and what a failed run is."""

import json
from pathlib import Path

import pytest

from pipeline.report.compared import Line
from pipeline.report.leaderboard import BY_HELD_OUT, BY_LOSS, axes_of, ranking, tell
from pipeline.report.results import FINISHED, Result


def line(name, said=FINISHED, **numbers):
    return Line(name, Result(Path("runs") / name, {}, said, numbers, {}), {"loss.beta": name}, said)


def names(lines):
    return [each.label for each in lines]


def test_the_best_is_first_by_accuracy_then_by_loss():
    lines = [
        line("a", held_out_accuracy=0.5, held_out_loss=0.1),
        line("b", held_out_accuracy=0.75, held_out_loss=0.9),
        line("c", held_out_accuracy=0.75, held_out_loss=0.3),
    ]
    ranked, order = ranking(lines)
    assert (names(ranked), order) == (["c", "b", "a"], BY_HELD_OUT)


def test_without_held_out_pairs_the_last_loss_decides():
    ranked, order = ranking([line("a", loss_last=0.5), line("b", loss_last=0.25), line("c", loss_last=0.3)])
    assert (names(ranked), order) == (["b", "c", "a"], BY_LOSS)


def test_runs_that_are_not_finished_stand_at_the_end_as_they_came():
    lines = [
        line("a", "failed: no memory", held_out_accuracy=1.0, held_out_loss=0.0),
        line("b", held_out_accuracy=0.5, held_out_loss=0.7),
        line("c", "failed: the loss is nan", loss_last=0.1),
        line("d", held_out_accuracy=0.25, held_out_loss=0.7),
    ]
    assert names(ranking(lines)[0]) == ["b", "d", "a", "c"]


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ([0.1, 0.05, 2.0], ["0.05", "0.1", "2.0"]),
        ([1e-6, 5e-6, 1e-6], ["1e-06", "5e-06"]),
        (["sigmoid", "ipo"], ["sigmoid", "ipo"]),
        ([[0.9], None, True], ["[0.9]", "null", "true"]),
    ],
)
def test_an_axis_has_each_value_once_and_numbers_by_their_size(values, axis):
    assert axes_of([{"key": value} for value in values]) == {"key": axis}


def test_a_table_without_any_finished_run_has_its_reasons(tmp_path, capsys):
    lines = [line("a", "failed: no memory"), line("b", "failed: the loss is nan")]
    tell(tmp_path / "sweep", lines, {"a": {"loss.beta": 0.1}, "b": {"loss.beta": 0.2}})
    out = capsys.readouterr().out
    assert "No run is finished." in out and "a: failed: no memory" in out and "b: failed: the loss is nan" in out
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    assert [(row["settings"], row["state"]) for row in written["runs"]] == [
        ({"loss.beta": 0.1}, "failed: no memory"),
        ({"loss.beta": 0.2}, "failed: the loss is nan"),
    ]
    page = (tmp_path / "sweep" / "sweep.html").read_text(encoding="utf-8")
    assert "failed: no memory" in page and "<img" not in page


def test_losses_of_other_scales_are_told_apart(tmp_path, capsys):
    tell(tmp_path, [line("a", loss_last=0.1)], {"a": {"loss.beta": 0.1}})
    assert "Losses and margins of another [loss] are on another scale; accuracies are not." in capsys.readouterr().out
