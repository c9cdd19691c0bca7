"""metrics.jsonl -> curves.png: loss, reward margin and accuracy."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.evidence import LN_2, read_curves
from pipeline.store import run_files

SERIES = {
    "loss": (("loss", "train"), ("eval/loss", "held out")),
    "reward margin": (("rewards/margins", "train"), ("eval/rewards/margins", "held out")),
    "accuracy": (("rewards/accuracies", "train"), ("eval/rewards/accuracies", "held out")),
}
COLORS = {"train": "#2a6fbb", "held out": "#d1495b"}


def draw_curves(run_dir: Path, name: str) -> Path:
    """Draw loss, reward margin and accuracy over the optimizer steps into `curves.png`; returns its path."""
    from matplotlib.figure import Figure

    curves = read_curves(run_dir / run_files.METRICS)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        for key, label in series:
            if key in curves:
                alone = "o" if label == "held out" else ""
                axes.plot(*curves[key], marker=alone, markersize=5, color=COLORS[label], label=label, lw=1.4)
        axes.set(title=title, xlabel="optimizer step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].axhline(LN_2, color="grey", lw=0.8, ls=":", label="ln 2")
    figure.axes[0].legend(frameon=False, loc="upper right")
    figure.suptitle(name)
    path = run_dir / run_files.CURVES
    figure.savefig(path, dpi=120)
    return path
