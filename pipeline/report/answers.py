"""answers.jsonl -> held-out prompts on the terminal, with the model's answers before and after."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.errors import visible

MOST_LINES = 8  # of one text
INDENT = 10  # columns before an answer


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
