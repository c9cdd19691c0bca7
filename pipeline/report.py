"""What is left to look at: summary.json, curves.png, and answers before and after."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

from pipeline.place import Place
from pipeline.store.artifacts import write_atomically

SERIES = {
    "loss": (("loss", "train"), ("eval/loss", "held out")),
    "reward margin": (("rewards/margins", "train"), ("eval/rewards/margins", "held out")),
    "accuracy": (("rewards/accuracies", "train"), ("eval/rewards/accuracies", "held out")),
}
COLORS = {"train": "#2a6fbb", "held out": "#d1495b"}


def write_summary(place: Place) -> dict[str, Any]:
    """Write `summary.json` and return it."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    summary = {
        "eval_accuracy": None,
        **place.counts,
        "seconds": place.seconds,
        "peak_rss_bytes": max(own, place.peak_rss),
    }
    write_atomically(place.run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def draw_curves(run_dir: Path, name: str) -> Path:
    """Loss, reward margin and accuracy over the steps -> `curves.png`."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        for key, label in series:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                alone = "o" if label == "held out" else ""
                axes.plot(
                    *zip(*points, strict=True), marker=alone, markersize=5, color=COLORS[label], label=label, lw=1.4
                )
        axes.set(title=title, xlabel="optimizer step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].axhline(0.6931, color="grey", lw=0.8, ls=":", label="ln 2")
    figure.axes[0].legend(frameon=False)
    figure.suptitle(name)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def show_answers(place: Place, folder: Path) -> None:
    """Print a few held-out prompts with the model's own answers."""
    with (folder / "answers.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows[: place.config.report.show_answers]:
        lines = [f"[bold]{_line(row['prompt'])}[/bold]"]
        lines += [f"  {name:<7}{_line(row[name])}" for name in ("before", "after", "chosen")]
        place.terminal.console.print("\n" + "\n".join(lines))


def _line(text: str) -> str:
    from rich.markup import escape

    text = " ".join(text.split())
    return escape(text if len(text) <= 160 else text[:157] + "...")
