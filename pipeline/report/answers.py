"""answers.jsonl -> held-out prompts on the terminal, with the model's answers before and after."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape


def show_answers(console: Console, path: Path, most: int) -> None:
    """Print the first `most` held-out prompts with the model's answers before and after, and the chosen one."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows[:most]:
        lines = [f"[bold]{_line(row['prompt'])}[/bold]"]
        lines += [f"  {name:<7}{_line(row[name])}" for name in ("before", "after", "chosen")]
        console.print("\n" + "\n".join(lines))


def _line(text: str) -> str:
    text = " ".join(text.split())
    return escape(text if len(text) <= 160 else text[:157] + "...")
