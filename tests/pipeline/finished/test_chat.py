"""`ray-align chat` against transformers' own generation from the same folders."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, GenerationConfig

from dpo.text.tokenizers import load_tokenizer
from pipeline import cli
from pipeline.finished.chat import show_answers
from tests.pipeline.finished.runs import CHATML, STRINGS, finished_run, program
from tests.pipeline.test_cli import left_with, refused

MOST = 12  # tokens of an answer


def expected(folder, said, chat=True):
    """The text that transformers' own greedy generation gives: the oracle."""
    tokenizer = load_tokenizer(*(CHATML if chat else ("bytes",)))
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) if chat else said
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    end = tokenizer.eos_token_id
    settings = GenerationConfig(max_new_tokens=MOST, do_sample=False, eos_token_id=end, pad_token_id=end)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def shown(text):
    """What stands on the output for an answer: without blanks around it, with escapes for what nobody sees."""
    text = text.strip()
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def answers(monkeypatch, capsys, lines, *arguments):
    """What stands on stdout for lines on stdin, in this process."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert cli.main(["chat", *arguments, "--max-tokens", str(MOST)]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    return folder, finished_run(folder)


@pytest.fixture(scope="module")
def strings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strings")
    return folder, finished_run(folder, STRINGS)


def test_a_pipe_gets_the_answer_alone(chats, monkeypatch, capsys):
    folder, path = chats
    truth = expected(folder / "runs/one/export", [user("Where is the pen?")])
    assert truth and truth != expected(folder / "base", [user("Where is the pen?")])
    assert answers(monkeypatch, capsys, b"Where is the pen?\n", path) == shown(truth) + "\n"
    assert answers(monkeypatch, capsys, b"Where is the pen?", str(folder / "runs/one")) == shown(truth) + "\n"


def test_before_and_after_each_remember_their_own_conversation(chats, monkeypatch, capsys):
    folder, path = chats
    out = answers(monkeypatch, capsys, b"One?\nTwo?\n/new\nOne?\n/quit\nThree?\n", path, "--show", "both")
    truth = ""
    for said in ([], ["One?"], []):
        for name, model in (("before", folder / "base"), ("after", folder / "runs/one/export")):
            history = [m for line in said for m in (user(line), assistant(expected(model, [user(line)])))]
            asked = "Two?" if said else "One?"
            truth += f"{name}: {shown(expected(model, [*history, user(asked)]))}\n"
    assert out == truth


def test_plain_text_is_asked_line_by_line(strings, monkeypatch, capsys):
    folder, path = strings
    out = answers(monkeypatch, capsys, b"One\n\nTwo \r\n", path)
    export = folder / "runs/one/export"
    assert out == "".join(f"{shown(expected(export, line, chat=False))}\n" for line in ("One", "Two "))


def test_a_temperature_draws_and_greedy_answers_do_not_change(strings, monkeypatch, capsys):
    _, path = strings
    lines = b"One\n" * 3
    greedy = answers(monkeypatch, capsys, lines, path).splitlines()
    drawn = [answers(monkeypatch, capsys, lines, path, "--temperature", "1.5") for _ in range(2)]
    assert len({*greedy}) == 1
    assert drawn[0] != drawn[1] and len({*drawn[0].splitlines()}) > 1
    assert answers(monkeypatch, capsys, b"One\n", path, "--temperature", "1e-4").splitlines() == greedy[:1]


def test_bytes_that_are_no_text_are_answered(strings, monkeypatch, capsys):
    _, path = strings
    assert answers(monkeypatch, capsys, b"\xff\xfe\0\x1b[2J\n", path)


def test_a_conversation_beyond_the_positions_is_refused(tmp_path, monkeypatch, capsys):
    path = finished_run(tmp_path, STRINGS, "gpt2")  # 256 positions
    out = answers(monkeypatch, capsys, b"x" * 250 + b"\n", path)
    assert out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 256 + b"\n")))
    assert refused(capsys, "chat", path) == (
        "what was said has 256 tokens, and the model has 256 positions, which leaves no room for an answer; /new "
        "begins a new conversation"
    )


def test_a_run_that_is_not_finished_says_which_command_to_give(tmp_path, capsys):
    path = finished_run(tmp_path)
    again = f"Run ray-align run {path} run.name=two"
    assert refused(capsys, "chat", path, "run.name=two") == (
        f"run.name = 'two' was not run yet: there is no run in {tmp_path}/runs/two. {again}"
    )
    (tmp_path / "runs/one/export/model.safetensors").unlink()
    assert refused(capsys, "chat", path) == (
        f"the run in {tmp_path}/runs/one is not finished: it has no whole export/. Run ray-align run {path}"
    )
    assert "is a folder, and not that of a run" in refused(capsys, "chat", str(tmp_path))


def test_settings_that_the_run_was_not_made_with_are_named(tmp_path, monkeypatch, capsys):
    path = finished_run(tmp_path, loss={"beta": 0.2}, evaluate={"max_new_tokens": 8}, train={"dtype": "auto"})
    for words, said in (
        ([], ""),
        (["loss.beta=0.3", "evaluate.max_new_tokens=9"], "loss.beta = 0.2, not 0.3"),
        (["loss.kind=ipo", "loss.beta=0.2"], "loss.kind = 'sigmoid', not 'ipo'"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        assert cli.main(["chat", path, *words]) == 0
        assert capsys.readouterr().err == (f"ray-align: the run was made with {said}\n" if said else "")


def test_a_start_that_was_changed_since_is_not_shown_as_the_start(tmp_path, monkeypatch, capsys):
    path = finished_run(tmp_path)
    weights = tmp_path / "base/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0@")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One?\n")))
    said = refused(capsys, "chat", path, "--show", "before")
    assert said.startswith(f"the model that the run in {tmp_path}/runs/one started from is not in {tmp_path}/base any ")
    assert answers(monkeypatch, capsys, b"One?\n", path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "-1"], "'-1' is no temperature; give a number from 0, such as 0.7"),
        (["--temperature", "nan"], "'nan' is no temperature; give a number from 0, such as 0.7"),
        (["--max-tokens", "0"], "'0' is no number of tokens; give a whole number from 1"),
        (["--show", "all"], "invalid choice: 'all'"),
    ],
)
def test_options_that_cannot_be_are_refused(words, said, capsys):
    assert said in left_with(2, capsys, "chat", "my.toml", *words)


def test_hostile_text_is_shown_and_not_obeyed():
    console = Console(file=io.StringIO(), width=80)
    show_answers(console, {"before": "[red]\x1b[2Jone\x07", "after": "\u202etwo"})
    text = console.file.getvalue()
    assert "[red]\\u001b[2Jone\\u0007" in text and "\\u202etwo" in text and "\x1b" not in text


@pytest.mark.parametrize(("width", "beside"), [(100, True), (60, True), (59, False), (20, False)])
def test_two_answers_stand_beside_each_other_where_there_is_room(width, beside):
    console = Console(file=io.StringIO(), width=width)
    words = " ".join(f"word{n}" for n in range(20))
    show_answers(console, {"before": words, "after": words})
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert bool(re.fullmatch(r"before +after *", lines[0])) == beside
    found = sorted(word for line in lines for word in line.split())
    assert found == sorted(["before", "after", *words.split(), *words.split()])


@pytest.mark.slow
def test_a_pipe_in_a_process_of_its_own_loads_no_ray(strings):
    folder, path = strings
    watched = (
        "import sys, pipeline.cli as c\ncode = c.main(sys.argv[1:])\nassert 'ray' not in sys.modules\nsys.exit(code)"
    )
    command = [sys.executable, "-c", watched, "chat", path, "--max-tokens", str(MOST)]
    done = subprocess.run(command, input="One\n", capture_output=True, text=True, check=False)
    truth = shown(expected(folder / "runs/one/export", "One", chat=False))
    assert (done.returncode, done.stdout, done.stderr) == (0, truth + "\n", "")
    assert program("chat", path, lines="") == (0, "", "")


@pytest.mark.slow
def test_a_program_that_reads_no_further_or_writes_nothing_is_no_fault(strings):
    _, path = strings
    program = f"{sys.executable} -m pipeline chat {path} --max-tokens {MOST}"
    for line, lines in ((f"yes One | head -n 300 | {program} | head -n 1", 1), (f"{program} <&-", 0)):
        command = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (len(done.stdout.splitlines()), done.stderr) == (lines, "")
        assert done.returncode in (0, 141)  # of `yes`


# At a terminal


def at_a_terminal(path, keys, *arguments):
    """The exit status and what a terminal shows, for keys that are typed one after another at each prompt."""
    me, other = pty.openpty()
    command = [sys.executable, "-m", "pipeline", "chat", path, "--max-tokens", str(MOST), *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    child = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, env=environment, close_fds=True, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(other)
    text, until = "", time.monotonic() + 120
    waiting = list(keys)
    while time.monotonic() < until:
        if select.select([me], [], [], 0.2)[0]:
            try:
                text += os.read(me, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        elif waiting and re.search(r"> (\x1b\[\S+)?$", text):
            os.write(me, waiting.pop(0))
    os.close(me)
    return child.wait(60), re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "status"), [(b"\x04", 0), (b"/quit\n", 0), (b"\x03", 130)], ids=["d", "quit", "c"])
def test_a_person_sees_both_answers_and_leaves_as_they_like(chats, end, status):
    folder, path = chats
    found, text = at_a_terminal(path, [b"One?\n", b"/nwe\n", b"/new\n", end])
    assert found == status
    assert "one, before and after training: /new forgets what was said; /quit or Ctrl-D ends" in text
    assert re.search(r"before +after", text)
    assert "there is no /nwe" in text
    assert "Traceback" not in text
    words = shown(expected(folder / "runs/one/export", [user("One?")])).split()
    assert words and all(word[:8] in text for word in words)
