"""A function in a process of its own: its result, its errors, its end."""

import gc
import os
import subprocess
import sys
import time

import pytest

from dpo.text.tokenizers import TokenizerError
from pipeline.errors import RunError
from pipeline.process import Process


def doubled(number):
    print("a library that talks")
    return os.getpid(), number * 2


def refuse():
    raise TokenizerError("no tokenizer")


def break_down():
    raise KeyError("unexpected")


def die():
    os._exit(3)


def sleep(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def test_the_result_comes_from_another_process():
    pid, number = Process(doubled, 21).result()
    assert number == 42 and pid != os.getpid()


def test_an_error_of_ours_keeps_its_class():
    with pytest.raises(TokenizerError, match=r"^no tokenizer$"):
        Process(refuse).result()


@pytest.mark.parametrize(("function", "said"), [(break_down, "KeyError: 'unexpected'"), (die, "RuntimeError")])
def test_anything_else_is_a_run_that_failed(function, said):
    with pytest.raises(RunError, match=f"the process of {function.__name__} ended: {said}"):
        Process(function).result()


def test_a_process_ends_without_a_last_search_for_garbage():
    """What is frozen is not searched. Handlers run in turn from the last one to the first."""
    said = (
        "import atexit, gc; from pipeline.process import end_quickly; "
        "atexit.register(lambda: print(gc.get_freeze_count())); end_quickly(); end_quickly()"
    )
    found = subprocess.run([sys.executable, "-c", said], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert int(found) > 1_000 and gc.get_freeze_count() == 0


def test_a_process_can_be_ended(tmp_path):
    process = Process(sleep, str(tmp_path / "pid"))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    process.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
