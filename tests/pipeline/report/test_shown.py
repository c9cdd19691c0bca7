"""Any text in any place of the terminal: nothing is taken for markup, no control character comes through."""

import io
import json
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.cli import command_line
from pipeline.doctor.findings import Finding, Report
from pipeline.doctor.numbers import Tokens, read_numbers
from pipeline.doctor.page import print_report
from pipeline.errors import InputError, RunError, visible
from pipeline.report.answers import show_answers
from pipeline.report.terminal import Terminal

EVIL = "\x1b]0;owned\x07\x1b[2Jhello\x9b2J\u202e [red]x[/red] [/b] \\"
ANY = (
    st.text(st.characters(codec=None), min_size=1)
    | st.just(EVIL)
    | st.sampled_from(["[red]", "[/b]", "[/x]", ":smile:"])
)
OURS = re.compile(r"\x1b\[(\?25[lh]|1A|2K)")  # hide and show the cursor, up, clear the line: of the live lines
SEEN = settings(max_examples=60, deadline=None)


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, color_system=None, soft_wrap=True, highlight=False)


def unseen(text):
    """Characters that a terminal would obey, but for those of our own live line."""
    return [c for c in text if c not in "\n\r" and not c.isprintable() and visible(c) != c]


@SEEN
@given(ANY)
def test_lines_of_a_stage(text):
    terminal = Terminal()
    terminal.console = console()
    terminal.note(text)
    terminal.end("export", text, 1.0)
    shown = terminal.console.file.getvalue()
    assert shown == f"{visible(text)}\n{'export':<9} {visible(text)}  1.0 s\n"
    terminal.console = console(terminal=True)
    with terminal.showing():
        terminal.live("export", text)
    assert unseen(OURS.sub("", terminal.console.file.getvalue())) == []


@SEEN
@given(ANY)
def test_answers_of_a_model(tmp_path_factory, text):
    assert unseen(answers(tmp_path_factory.getbasetemp(), text)) == []


def test_answers_keep_what_looks_like_markup(tmp_path):
    assert answers(tmp_path, EVIL).count(visible(EVIL)) == 4


def answers(folder, text):
    """What is shown where prompt and answers are this text."""
    row = dict.fromkeys(("prompt", "before", "after", "chosen"), text)
    (folder / "answers.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    out = console()
    show_answers(out, folder / "answers.jsonl", 1)
    return out.file.getvalue()


@SEEN
@given(ANY)
def test_findings_of_the_doctor(text):
    out, none = console(), read_numbers([], Tokens(None, 0, None))
    finding = Finding("name", "error", text, text, text, examples=[text])
    print_report(out, Report([finding], {"data": {text: text}}, none, none, None, 8, Path("/somewhere")))
    assert unseen(out.file.getvalue()) == []


def test_errors_of_a_run(monkeypatch, capsys):
    verb = command_line.VERBS["config"]
    for error, status in ((InputError(EVIL), 2), (RunError(EVIL), 1), (OSError(5, EVIL, EVIL), 1)):

        def act(*_, error=error):
            raise error

        monkeypatch.setitem(command_line.VERBS, "config", verb._replace(act=act))
        assert command_line.main(["config", "examples/quickstart.toml"]) == status
        assert unseen(capsys.readouterr().err) == []
