"""answers.jsonl -> held-out prompts with the model's answers: before and after on the terminal, all steps on a page."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from pipeline.errors import visible

MOST_LINES = 8  # of one text
INDENT = 10  # columns before an answer
SHOWN_STEPS = 5  # on a page, between before and after


class Beside(NamedTuple):
    """The answers to some prompts, each prompt with its texts in their order."""

    prompts: list[tuple[str, list[tuple[str, str]]]]  # prompt, and what stands side by side: title, text
    shown: int  # steps of training
    steps: int  # of which there are answers


def side_by_side(rows: list[dict[str, Any]]) -> Beside:
    """Put the answers before, during and after training beside each other: those of a few steps, if there are many."""
    steps = sorted({int(step) for row in rows for step in row.get("during", {})})
    shown = [str(step) for step in spread(steps, SHOWN_STEPS)]
    prompts = []
    for row in rows:
        during = row.get("during", {})
        between = [(f"after step {int(step):,}", during[step]) for step in shown if step in during]
        texts = [("before", row["before"]), *between, ("after", row["after"]), ("chosen in the data", row["chosen"])]
        prompts.append((row["prompt"], texts))
    return Beside(prompts, len(shown), len(steps))


def spread(values: list[int], most: int) -> list[int]:
    """Return the first and the last of sorted values and some between them, `most` in all; all if they are no more."""
    if len(values) <= most:
        return values
    return [values[round(n * (len(values) - 1) / (most - 1))] for n in range(most)]


def show_answers(console: Console, path: Path, most: int) -> None:
    """Print the first `most` held-out prompts with the model's answers before and after, and the chosen one."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows[:most]:
        console.print()
        console.print(Text("\n".join(_lines(row["prompt"], console.width)), "bold"))
        for name in ("before", "after", "chosen"):
            first, *others = _lines(row[name], console.width - INDENT)
            console.print(Text("\n".join([f"  {name:<8}{first}", *(" " * INDENT + line for line in others)])))


def _lines(text: str, width: int) -> list[str]:
    """The lines that a text has, and those that the width makes of them, as many as are shown of one text."""
    given = [visible(line) for line in text.strip().splitlines()] or [""]
    lines = [part for line in given for part in textwrap.wrap(line, max(20, width), drop_whitespace=True) or [""]]
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "..."]
