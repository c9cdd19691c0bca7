"""`ray-align chat`: lines from the terminal, or from a pipe -> answers before and after training, side by side."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.config import Config
from pipeline.errors import InputError, visible
from pipeline.finished.found import finished
from pipeline.place import Place

if TYPE_CHECKING:
    from pipeline.finished.talk import Manner, Talker

SIDES = {"after": ("after",), "before": ("before",), "both": ("before", "after")}
NEW, QUIT = "/new", "/quit"
ASK = "> "
NARROW = 60  # columns below which two answers stand below each other
APART = 3  # columns between them


def chat(config: Config, show: str | None, temperature: float, max_tokens: int, command: str) -> None:
    """Answer lines until there are no more.

    Args:
        show: a key of SIDES; None: both to a person at a terminal, the trained model's alone to a program.
        command: makes the run.
    """
    by_hand = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))  # None: closed
    names = SIDES[show or ("both" if by_hand else "after")]
    place, _ = finished(config, command)
    console = Console(highlight=False)
    with _waiting(console, by_hand, f"loading {' and '.join(names)} of {place.config.run.name}"):
        from pipeline.finished.talk import Manner  # with torch, which a run that is not there does without

        talkers = open_talkers(place, names, Manner(temperature, max_tokens))
    if by_hand:
        console.print(Text(_greeting(place, talkers), "dim"))
    try:
        _talk(console, talkers, by_hand)
    except BrokenPipeError:  # whoever read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _talk(console: Console, talkers: dict[str, Talker], by_hand: bool) -> None:
    for line in _lines(by_hand):
        if line == QUIT:
            break
        if line == NEW:
            for talker in talkers.values():
                talker.conversation.forget()
        elif by_hand and line.startswith("/") and " " not in line:
            console.print(Text(visible(f"there is no {line}; {NEW} forgets what was said, {QUIT} ends"), "dim"))
        elif line.strip() and by_hand:
            _answer_at_a_terminal(console, talkers, line)
        elif line.strip():
            _print(_answers(talkers, line))


def _answer_at_a_terminal(console: Console, talkers: dict[str, Talker], line: str) -> None:
    """Show the answers, or why there are none; the conversation goes on."""
    try:
        with _waiting(console, True, "answering"):
            answers = _answers(talkers, line)
    except InputError as error:
        console.print(Text(visible(str(error)), "dim"))
    else:
        show_answers(console, answers)


def _answers(talkers: dict[str, Talker], line: str) -> dict[str, str]:
    """Ask all, and let each remember the line and its own answer once all have one."""
    with _fitting(talkers):
        answers = {name: talker.answer(line) for name, talker in talkers.items()}
    for name, talker in talkers.items():
        talker.conversation.add(line, answers[name])
    return {name: answer.strip() for name, answer in answers.items()}


def open_talkers(place: Place, names: tuple[str, ...], manner: Manner) -> dict[str, Talker]:
    """Load the models of these names.

    Raises:
        InputError: one is not there, or does not fit into the memory of the GPU.
    """
    import torch
    from transformers.utils import logging

    from pipeline.finished.policies import after_training, before_training, tokenizer_of
    from pipeline.finished.talk import Talker, in_turns

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(random.SystemRandom().getrandbits(63))  # else every conversation drew the same
    tokenizer = tokenizer_of(place)
    turns, find = in_turns(place, tokenizer), {"before": before_training, "after": after_training}
    with _fitting(names):
        return {name: Talker(place, find[name](place, len(tokenizer)), tokenizer, turns, manner) for name in names}


@contextmanager
def _fitting(names: Iterable[str]) -> Iterator[None]:
    """Raise an InputError where the memory of a GPU runs out in the body."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            f"the memory of the GPU has no room for {' and '.join(names)}. --show after loads one model alone, and "
            "CUDA_VISIBLE_DEVICES= in front of the command takes the CPU"
        ) from None


def _lines(by_hand: bool) -> Iterator[str]:
    """Yield lines as they come, without their ends."""
    if by_hand:
        import readline  # noqa: F401 - gives `input` its keys

        while True:
            try:
                yield input(ASK)
            except EOFError:
                print()
                return
    if sys.stdin is None:
        return
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    for line in sys.stdin:
        yield line.removesuffix("\n").removesuffix("\r")


def _waiting(console: Console, by_hand: bool, said: str) -> AbstractContextManager[object]:
    return console.status(Text(visible(said))) if by_hand else nullcontext()


def _greeting(place: Place, talkers: dict[str, Talker]) -> str:
    turns = next(iter(talkers.values())).conversation.turns
    kept = f"{NEW} forgets what was said" if turns else "each line is a prompt by itself, as in the run's data"
    return visible(f"{place.config.run.name}, {' and '.join(talkers)} training: {kept}; {QUIT} or Ctrl-D ends")


def show_answers(console: Console, answers: dict[str, str]) -> None:
    """Print answers beside each other, or below each other where the terminal is narrow; one alone has no name."""
    texts = [Text(visible(answer)) for answer in answers.values()]
    if len(texts) == 1:
        console.print(texts[0])
    elif console.width < NARROW:
        for name, text in zip(answers, texts, strict=True):
            console.print(Text(name, "bold"), text, sep="\n")
    else:
        table = Table.grid(padding=(0, APART, 0, 0), expand=True)
        for _ in texts:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(name, "bold") for name in answers))
        table.add_row(*texts)
        console.print(table)
    console.print()


def _print(answers: dict[str, str]) -> None:
    """Print answers for a program: one alone as it is, several behind their names."""
    for name, answer in answers.items():
        print(visible(answer if len(answers) == 1 else f"{name}: {answer}"), flush=True)
