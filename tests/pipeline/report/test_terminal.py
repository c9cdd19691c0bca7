"""What stands on a terminal while a run goes on, and that nothing of it stays."""

import io
import json
import os
import re
import threading
import time

import pytest
from rich.console import Console

from pipeline.report import following, terminal
from pipeline.report.terminal import Pace, Terminal, clock

SEQUENCE = re.compile(r"\x1b\[\??([\d;]*)([a-zA-Z])")
STAGES = ("prepare", "score", "train")


class Screen:
    """As much of a terminal as rich uses: lines, the cursor, and clearing of lines."""

    def __init__(self, width, height=40):
        self.width, self.height = width, height
        self.out = io.StringIO()

    def lines(self):
        """The lines that are on the screen, without those that are empty at the end."""
        rows, row, column, text, at = [[]], 0, 0, self.out.getvalue(), 0
        while at < len(text):
            found = SEQUENCE.match(text, at)
            if found is not None:
                count, what = int(found[1] or 1) if found[1].isdigit() else 1, found[2]
                if what == "A":
                    row -= count
                if what == "K":
                    rows[row] = []
                at = found.end()
                continue
            if text[at] == "\r":
                column = 0
            elif text[at] == "\n":
                row, column = row + 1, 0
                rows += [[]] * (row + 1 - len(rows))
            else:
                if column == self.width:
                    row, column = row + 1, 0
                    rows += [[]] * (row + 1 - len(rows))
                rows[row] = [*rows[row][:column], *" " * (column - len(rows[row])), text[at], *rows[row][column + 1 :]]
                column += 1
            at += 1
        lines = ["".join(cells).rstrip() for cells in rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def on(width):
    """A terminal of this width, and what it shows."""
    shown, screen = Terminal(), Screen(width)
    options = {"force_terminal": True, "color_system": None, "highlight": False, "legacy_windows": False}
    shown.console = Console(file=screen.out, width=width, height=40, **options)
    return shown, screen


@pytest.mark.parametrize("width", [60, 100])
def test_a_stage_has_its_bar_its_clock_and_the_time_left(width):
    shown, screen = on(width)
    with shown.showing(STAGES):
        shown.begin("score")
        shown.live("score", "10 of 40 sequences", 10, 40, left=75.0)
        shown._live.progress.refresh()
        now, whole = screen.lines()
    assert re.fullmatch(r"score +[━╸╺ ]+ 10 of 40 sequences +0:00, 1:1[45] left", now)
    assert re.fullmatch(r"run +[━╸╺ ]+ stage 2 of 3 +0:00", whole)
    assert max(len(now), len(whole)) <= width
    assert screen.lines() == []


@pytest.mark.parametrize("width", [60, 100])
def test_nothing_is_left_over_by_an_end_or_by_ctrl_c(width):
    shown, screen = on(width)
    with pytest.raises(KeyboardInterrupt), shown.showing(STAGES):
        shown.begin("prepare")
        shown.live("prepare", "a long text about what goes on " * 8, 1, 2)
        shown.end("prepare", "8 pairs", 1.0)
        shown.begin("score")
        shown.live("score", "short")
        shown.note("score     a note")
        time.sleep(0.3)
        screen.out.write("^C")  # as the terminal does
        raise KeyboardInterrupt
    assert screen.lines() == ["prepare   8 pairs  1.0 s", "score     a note"]


def test_lines_are_wrapped_at_blanks():
    shown, screen = on(60)
    words = " ".join(f"word{number}" for number in range(30))
    shown.note(words)
    assert len(screen.lines()) > 2 and " ".join(" ".join(screen.lines()).split()) == words


def test_the_clock_runs_while_nothing_is_reported():
    shown, screen = on(60)
    with shown.showing(STAGES):
        shown.begin("train")
        shown.live("train", "loading the model")
        time.sleep(2.2)
        now, _ = screen.lines()
    assert re.search(r"loading the model +0:0[23]$", now)


def test_off_a_terminal_a_line_is_printed_from_time_to_time(monkeypatch, capsys):
    shown = Terminal()
    with shown.showing(STAGES):
        shown.begin("train")
        shown.live("train", "step 1/9", 1, 9)
        monkeypatch.setattr(terminal, "QUIET_SECONDS", 0)
        shown.live("train", "step 2/9", 2, 9, left=61.0)
        shown.live("train", "step 2/9", 2, 9, left=60.0)
        shown.note("x" * 300)
    assert capsys.readouterr().out == f"train     step 2/9  1:01 left\n{'x' * 300}\n"


def test_a_terminal_that_knows_no_cursor_gets_lines_that_stay_only(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown, screen = on(60)
    with shown.showing(STAGES):
        shown.live("train", "step 1/9", 1, 9)
        shown.end("train", "done", 1.0)
    assert screen.lines() == ["train     done  1.0 s"]


def test_the_pace_tells_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.left(10, 100) is None
    now[0] = 120.0
    assert pace.left(20, 100) == 160.0  # 10 in 20 seconds
    assert pace.left(5, 100) is None  # begun anew
    assert [clock(seconds) for seconds in (0, 61, 3661)] == ["0:00", "1:01", "1:01:01"]


# What workers write down


class Told:
    """A terminal that remembers."""

    def __init__(self):
        self.seen, self.notes = [], []

    def live(self, stage, text, done=None, total=None, left=None):
        self.seen.append((text, done, total, left))

    def note(self, text):
        self.notes.append(text)


def look(folder, write, looks=1):
    """What is shown, look by look, after `write` has been called before each."""
    told, stop = Told(), threading.Event()

    class Stop:
        number = 0

        def wait(self, _):
            if self.number == looks:
                return True
            write(self.number)
            self.number += 1
            return False

    following._follow(told, "train", folder / "metrics.jsonl", 10, folder / "attempts.jsonl", Stop())
    assert not stop.is_set()
    return told


def row(step, loss=0.5):
    return json.dumps({"step": step, "loss": loss, "perf/step_seconds": 2.0, "perf/pairs_per_second": 0.04}) + "\n"


def add(path, text, at):
    with path.open("a") as file:
        file.write(text)
    os.utime(path, ns=(at, at))


def test_the_phase_is_shown_until_a_step_is_done(tmp_path):
    status, metrics = tmp_path / "status.txt", tmp_path / "metrics.jsonl"
    later = time.time_ns() + 10**10

    def write(number):
        if number == 1:
            add(status, "loading the model\n", later)
        if number == 2:
            add(metrics, row(1), later + 10**9)
        if number == 3:
            status.unlink()
            add(status, "evaluating after step 1\n", later + 2 * 10**9)
        if number == 4:
            add(metrics, row(2) + row(3), later + 3 * 10**9)

    told = look(tmp_path, write, 5)
    assert told.seen == [
        ("starting workers", None, None, None),
        ("loading the model", None, None, None),
        ("step 1/10  loss 0.5000  2 s/step", 1, 10, None),
        ("evaluating after step 1", 1, 10, None),
        ("step 3/10  loss 0.5000  2 s/step", 3, 10, 14.0),
    ]


def test_what_workers_of_an_earlier_run_said_is_not_shown(tmp_path):
    add(tmp_path / "status.txt", "writing the weights\n", time.time_ns() - 10**12)
    add(tmp_path / "metrics.jsonl", row(4), time.time_ns() - 10**12)
    add(tmp_path / "attempts.jsonl", json.dumps({"time": time.time() - 1000, "from_step": 4}) + "\n", time.time_ns())
    told = look(tmp_path, lambda _: None)
    assert (told.seen, told.notes) == ([("starting workers", None, None, None)], [])


def test_a_run_that_goes_on_says_so_once(tmp_path):
    def write(number):
        line = json.dumps({"time": time.time() + 1, "from_step": 4})
        (tmp_path / "attempts.jsonl").write_text(f'{{"time": 1, "from_step": 0}}\n{line}\n')

    assert look(tmp_path, write, 3).notes == ["train     going on from step 4 of 10"]


def test_a_run_that_begins_says_nothing(tmp_path):
    def write(_):
        (tmp_path / "attempts.jsonl").write_text(json.dumps({"time": time.time() + 1, "from_step": 0}) + "\n")

    assert look(tmp_path, write, 2).notes == []
