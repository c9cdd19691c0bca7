import json

from pipeline.report import curves as report
from pipeline.report.answers import show_answers
from pipeline.report.curves import draw_curves
from pipeline.report.summary import write_summary
from pipeline.report.terminal import Terminal


def test_the_summary_has_counts_seconds_and_memory(tmp_path):
    counts = {"pairs_read": 5, "steps": 2, "loss_first": 0.7}
    summary = write_summary(tmp_path, counts, {"prepare": 1.25}, 2**50)  # of a worker
    assert summary == {
        "eval_accuracy": None,
        "pairs_read": 5,
        "steps": 2,
        "loss_first": 0.7,
        "seconds": {"prepare": 1.25},
        "peak_rss_bytes": 2**50,
    }
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary


def test_the_summary_counts_the_memory_of_this_process_too(tmp_path):
    assert 10 * 2**20 < write_summary(tmp_path, {}, {}, 0)["peak_rss_bytes"] < 2**45


def test_an_evaluation_fills_in_the_accuracy(tmp_path):
    assert write_summary(tmp_path, {"eval_accuracy": 0.75}, {}, 0)["eval_accuracy"] == 0.75


def drawn(monkeypatch, folder):
    """The figure that `draw_curves` saves, still open for a look."""
    from matplotlib.figure import Figure

    saved = []
    write = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), write(self, *a, **k))[1])
    path = draw_curves(folder, "a run")
    assert path.read_bytes().startswith(b"\x89PNG")
    return saved[0]


def lines_of(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_the_curves_show_the_metrics(monkeypatch, tmp_path):
    rows = [{"step": s, "loss": 1 / s, "rewards/margins": 2.0 * s, "rewards/accuracies": 0.5} for s in (1, 2, 3)]
    rows += [{"step": 2, "eval/loss": 0.6, "eval/rewards/margins": 1.0, "eval/rewards/accuracies": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    figure = drawn(monkeypatch, tmp_path)
    loss, margin, accuracy = figure.axes
    assert lines_of(loss)["train"] == ([1, 2, 3], [1, 1 / 2, 1 / 3])
    assert lines_of(loss)["held out"] == ([2], [0.6])
    assert lines_of(margin) == {"train": ([1, 2, 3], [2.0, 4.0, 6.0]), "held out": ([2], [1.0])}
    assert lines_of(accuracy)["held out"] == ([2], [0.75])
    assert [axes.get_title() for axes in figure.axes] == ["loss", "reward margin", "accuracy"]


def test_curves_without_held_out_pairs(monkeypatch, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n', encoding="utf-8")
    loss, margin, _ = drawn(monkeypatch, tmp_path).axes
    assert set(lines_of(loss)) == {"train", "ln 2"}
    assert lines_of(margin) == {}


def test_answers_are_shown_as_they_are(tmp_path, capsys):
    """Text of the model is no markup, keeps its lines, and is not longer than a screen."""
    rows = [
        {
            "prompt": "Is [red]it[/red]\n on?",
            "before": "no\u2028no\x1b",
            "after": "x " * 500,
            "chosen": "[/bold]",
            "rejected": "r",
        },
        {"prompt": "second", "before": "b", "after": "a", "chosen": "c", "rejected": "r"},
        {"prompt": "third", "before": "b", "after": "a", "chosen": "c", "rejected": "r"},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "answers.jsonl").write_text(text, encoding="utf-8")
    show_answers(Terminal().console, tmp_path / "answers.jsonl", 2)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[1:5] == ["Is [red]it[/red]", " on?", "  before  no", "          no\\u001b"]
    assert lines[5].startswith("  after   x x x") and lines[12:14] == ["          ...", "  chosen  [/bold]"]
    assert max(map(len, lines)) <= Terminal().console.width
    assert "second" in shown
    assert "third" not in shown  # as many as were asked for


def test_every_series_is_a_metric_that_training_writes():
    names = {key for series in report.SERIES.values() for key, _ in series}
    assert names == {n for m in ("loss", "rewards/margins", "rewards/accuracies") for n in (m, f"eval/{m}")}
