"""answers.jsonl -> held-out prompts on the terminal, with the model's answers before and after."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.errors import visible


def show_answers(console: Console, path: Path, most: int) -> None:
    """Print the first `most` held-out prompts with the model's answers before and after, and the chosen one."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows[:most]:
        console.print()
        console.print(Text(_line(row["prompt"]), "bold"))
        for name in ("before", "after", "chosen"):
            console.print(Text(f"  {name:<7}{_line(row[name])}"))


def _line(text: str) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= 160 else text[:157] + "..."
