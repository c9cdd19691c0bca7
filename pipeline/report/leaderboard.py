"""The runs of a sweep -> a table on the terminal, sweep.json and sweep.html, the best run first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo.lm.whole_folder import to_json, write_atomically
from pipeline.config.several import plain
from pipeline.errors import visible
from pipeline.report.compared import LACKING, Line, against, held_out_of, print_rows, write_compared
from pipeline.report.pages import Picture
from pipeline.store import run_files

BY_HELD_OUT = "held-out accuracy, then held-out loss"
BY_LOSS = "last training loss, since no pairs were held out (data.eval)"
OF_OTHER_LOSSES = "Losses and margins of another [loss] are on another scale; accuracies are not."


def tell(folder: Path, lines: Sequence[Line], settings: dict[str, dict[str, Any]]) -> None:
    """Print the table, and write `sweep.json` and `sweep.html`.

    Args:
        folder: of the sweep.
        lines: its runs, in the order of the grid.
        settings: the swept settings of each run as plain values, by its name.
    """
    ranked, order = ranking(lines)
    sentences = [f"The best run is the first, by {order}." if ranked[0].finished else "No run is finished."]
    if any(key.startswith("loss.") for key in lines[0].values):
        sentences.append(OF_OTHER_LOSSES)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"order": order, "runs": [_as_json(line, settings[line.result.name]) for line in ranked]}
    write_atomically(folder / run_files.SWEEP, to_json(content, indent=1) + "\n")
    pictures = [] if held_out_of(ranked) == [] else _pictures(ranked, axes_of(list(settings.values())))
    write_compared(folder / run_files.SWEEP_PAGE, folder.name, sentences, ranked, pictures)
    print()
    print_rows(ranked, [str(place) if line.finished else LACKING for place, line in enumerate(ranked, 1)])
    unfinished = [f"{line.label}: {line.said}" for line in ranked if not line.finished]
    _print([*sentences, *unfinished, f"report: {folder / run_files.SWEEP_PAGE}"])


def ranking(lines: Sequence[Line]) -> tuple[list[Line], str]:
    """Sort the finished runs, the best first, and those that are not finished behind them; say by which results."""
    finished = [line for line in lines if line.finished]
    if all("held_out_accuracy" in line.result.numbers for line in finished):
        order = BY_HELD_OUT
        finished.sort(
            key=lambda line: (-line.result.numbers["held_out_accuracy"], line.result.numbers["held_out_loss"])
        )
    else:
        order = BY_LOSS
        finished.sort(key=lambda line: line.result.numbers["loss_last"])
    return [*finished, *(line for line in lines if not line.finished)], order


def axes_of(settings: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The values of each key as text, in the order of an axis: numbers by their size, others as they come."""
    found = {}
    for key in settings[0]:
        values = list({plain(each[key]): each[key] for each in settings}.values())
        numbers = all(isinstance(value, int | float) for value in values)
        found[key] = [plain(value) for value in (sorted(values) if numbers else values)]
    return found


def _pictures(lines: Sequence[Line], axes: dict[str, list[str]]) -> list[Picture]:
    return [against(key, values, lines, name) for key, values in axes.items() for name in held_out_of(lines)]


def _as_json(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    return {"run": line.result.name, "settings": settings, "state": line.said, **line.result.numbers}


def _print(sentences: Sequence[str]) -> None:
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal
    for sentence in sentences:
        console.print(Text(visible(sentence)))
