"""The report as an HTML page in light and dark colours, and as text for the terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.doctor.findings import SEVERITIES, Report
from pipeline.doctor.numbers import Numbers
from pipeline.errors import visible
from pipeline.report import pages

COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}


def write_page(report: Report, name: str) -> Path:
    """Write `doctor.html`, a page without further files; returns its path."""
    count = {severity: sum(f.severity == severity for f in report.findings) for severity in reversed(SEVERITIES)}
    verdict = ", ".join(
        f"{number} {severity}{'s' if number > 1 else ''}" for severity, number in count.items() if number
    )
    path = report.folder / "doctor.html"
    pages.write_page(
        path,
        "doctor.html",
        title=f"{name}: doctor",
        name=name,
        verdict=verdict,
        findings=report.findings,
        topics=report.facts,
        pictures=_pictures(report) if report.train.pairs else [],
    )
    return path


def _pictures(report: Report) -> list[pages.Picture]:
    drawn = [
        (_lengths, "Tokens of each side (logarithmic scale)"),
        (_bias, "Chosen minus rejected: by how many tokens the preferred answer is longer"),
        (_whole, "Tokens of prompt and longer answer before truncation; the line is data.max_length"),
        (_sharing, "Pairs with the same prompt"),
        (_work, "Tokens computed per epoch, in millions"),
    ]
    return [pages.picture(partial(draw, report), caption) for draw, caption in drawn]


def _lengths(report: Report, axes: Any, colors: dict[str, str]) -> None:
    most = max(2, *(int(getattr(report.train, side).max()) for side in ("prompt", "chosen", "rejected")))
    bins = np.geomspace(1, most, 50)
    for side in ("prompt", "chosen", "rejected"):
        values = np.maximum(1, getattr(report.train, side))
        axes.hist(values, bins, histtype="step", color=colors[side], label=side, lw=1.5)
    axes.set(xscale="log", xlabel="tokens", ylabel="pairs")
    axes.legend(frameon=False, loc="upper right")


def _bias(report: Report, axes: Any, colors: dict[str, str]) -> None:
    train: Numbers = report.train
    difference = train.chosen - train.rejected
    edge = max(1, int(np.quantile(np.abs(difference), 0.99)))
    bins = np.linspace(-edge, edge, 51)
    clipped = np.clip(difference, -edge, edge)
    axes.hist(clipped[difference > 0], bins, color=colors["chosen"], label="chosen is longer")
    axes.hist(clipped[difference < 0], bins, color=colors["rejected"], label="rejected is longer")
    axes.set(xlabel="tokens", ylabel="pairs")
    axes.legend(frameon=False, loc="upper right")


def _whole(report: Report, axes: Any, colors: dict[str, str]) -> None:
    whole = np.sort(report.train.longest + report.train.cut)
    axes.plot(whole, np.arange(1, len(whole) + 1) / len(whole), color=colors["prompt"], lw=1.5, drawstyle="steps-post")
    axes.axvline(report.max_length, color=colors["faint"], ls="--", lw=1)
    axes.set(xlabel="tokens", ylabel="share of pairs", ylim=(0, 1.02), xlim=(0, None))


def _sharing(report: Report, axes: Any, colors: dict[str, str]) -> None:
    _, counts = np.unique(report.train.prompt_hash, return_counts=True)
    sizes, prompts = np.unique(np.minimum(counts, 20), return_counts=True)
    axes.bar([f"{size}{'+' if size == 20 else ''}" for size in sizes], prompts, color=colors["prompt"])
    axes.set(xlabel="pairs per prompt", ylabel="prompts")


def _work(report: Report, axes: Any, colors: dict[str, str]) -> None:
    names = {
        "padded": "padded",
        "logical": "every sequence",
        "shared": "prompt once per pair",
        "grouped": "prompt once",
    }
    values = [getattr(report.work, name) / 1e6 for name in names]
    shades = [colors["rejected"], colors["faint"], colors["chosen"], colors["chosen"]]
    bars = axes.barh(list(names.values()), values, color=shades)
    axes.bar_label(bars, fmt="%.3g", padding=3, color=colors["ink"])
    axes.invert_yaxis()
    axes.set(xlabel="million tokens", xlim=(0, 1.15 * max(values)))


def print_report(console: Console, report: Report) -> None:
    """Print facts and findings on the terminal."""
    for topic, facts in filter(lambda item: item[1], report.facts.items()):
        table = Table(title=f"the {topic}", title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for key, value in facts.items():
            table.add_row(Text(visible(key)), Text(visible(value)))
        console.print(table)
    for finding in report.findings:
        head = (finding.severity, f"{COLORS[finding.severity]} bold"), (visible(finding.title), "bold")
        console.print()
        console.print(Text(" ").join(Text(*part) for part in (*head, (finding.name, "dim"))))
        console.print(Text(visible(finding.detail)))
        console.print(Text("fix:", "bold").append(f" {visible(finding.fix)}", "not bold"))
        for example in finding.examples:
            console.print(Text(f"  {visible(str(example))}", "dim"))
    if not report.findings:
        console.print(Text("\nnothing found", "green"))
    console.print(Text(visible(f"\nreport: {report.folder / 'doctor.html'}")))
