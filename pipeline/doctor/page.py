"""The report as an HTML page in light and dark colours, and as text for the terminal."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo.lm.whole_folder import write_atomically
from pipeline.doctor.findings import SEVERITIES, Finding, Report
from pipeline.doctor.numbers import Numbers
from pipeline.errors import visible

LIGHT = {"ink": "#1f2328", "faint": "#8b949e", "prompt": "#8250df", "chosen": "#1a7f37", "rejected": "#cf222e"}
DARK = {"ink": "#e6edf3", "faint": "#7d8590", "prompt": "#bc8cff", "chosen": "#3fb950", "rejected": "#ff7b72"}
COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --dim: #59636e; --card: #f6f8fa; --line: #d1d9e0;
  --error: #cf222e; --warning: #9a6700; --note: #0969da; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --dim: #9198a1; --card: #151b23;
  --line: #3d444d; --error: #ff7b72; --warning: #d29922; --note: #58a6ff; --good: #3fb950; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; } h3 { font-size: 1rem; margin: 0; }
.dim { color: var(--dim); } .good { color: var(--good); }
.finding { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--tone);
  border-radius: 6px; margin: .7rem 0; padding: .7rem 1rem; } .finding p { margin: .35rem 0; }
.error { --tone: var(--error); } .warning { --tone: var(--warning); } .note { --tone: var(--note); }
.tag { color: var(--tone); font-weight: 600; text-transform: uppercase; font-size: .75rem; letter-spacing: .04em; }
code { background: var(--card); font: .85em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
ul { margin: .3rem 0 0; padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0;
  vertical-align: top; } td:first-child { color: var(--dim); white-space: nowrap; width: 14rem; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
figure { border: 1px solid var(--line); border-radius: 6px; margin: 0; padding: .6rem; }
figure img { display: block; width: 100%; } figcaption { color: var(--dim); font-size: .85rem; }
"""


def write_page(report: Report, name: str) -> Path:
    """Write `doctor.html`, a page without further files; returns its path."""
    count = {severity: sum(f.severity == severity for f in report.findings) for severity in reversed(SEVERITIES)}
    verdict = ", ".join(
        f"{number} {severity}{'s' if number > 1 else ''}" for severity, number in count.items() if number
    )
    body = [
        f"<h1>{escape(name)}: {escape(verdict) or '<span class=good>nothing found</span>'}</h1>",
        "<p class=dim>Findings of ray-align doctor in the data, the template and the configuration.</p>",
        *map(_card, report.findings),
    ]
    for topic, facts in filter(lambda item: item[1], report.facts.items()):
        rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in facts.items())
        body.append(f"<h2>The {escape(topic)}</h2><table>{rows}</table>")
    if report.train.pairs:
        body.append(f"<h2>Pictures</h2><div class=pictures>{''.join(_pictures(report))}</div>")
    head = f"<meta charset=utf-8><title>{escape(name)}: doctor</title><style>{STYLE}</style>"
    head += '<meta name=viewport content="width=device-width">'
    path = report.folder / "doctor.html"
    write_atomically(path, f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n")
    return path


def _card(finding: Finding) -> str:
    share = f" · {finding.share:.1%}" if finding.share is not None else ""
    rows = "".join(f"<li><code>{escape(str(example))}</code></li>" for example in finding.examples)
    return (
        f"<section class='finding {finding.severity}'><span class=tag>{finding.severity}</span>"
        f" <span class=dim>{finding.name}{share}</span><h3>{escape(finding.title)}</h3><p>{escape(finding.detail)}</p>"
        f"<p><b>Fix:</b> {escape(finding.fix)}</p>{f'<ul>{rows}</ul>' if rows else ''}</section>"
    )


def _pictures(report: Report) -> list[str]:
    drawn = [
        (_lengths, "Tokens of each side (logarithmic scale)"),
        (_bias, "Chosen minus rejected: by how many tokens the preferred answer is longer"),
        (_whole, "Tokens of prompt and longer answer before truncation; the line is data.max_length"),
        (_sharing, "Pairs with the same prompt"),
        (_work, "Tokens computed per epoch, in millions"),
    ]
    return [_figure(draw, report, caption) for draw, caption in drawn]


def _figure(draw: Any, report: Report, caption: str) -> str:
    """Draw a picture in light and in dark colours; the browser chooses."""
    light, dark = (_svg(draw, report, colors) for colors in (LIGHT, DARK))
    return (
        f"<figure><picture><source srcset='{dark}' media='(prefers-color-scheme: dark)'>"
        f"<img src='{light}' alt='{escape(caption)}'></picture><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _svg(draw: Any, report: Report, colors: dict[str, str]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {"text.color": colors["ink"], "axes.labelcolor": colors["ink"], "axes.edgecolor": colors["faint"]}
    style |= {"xtick.color": colors["ink"], "ytick.color": colors["ink"], "svg.hashsalt": "doctor", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, report, colors)
        if axes.get_ylabel() in ("pairs", "prompts"):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def _lengths(axes: Any, report: Report, colors: dict[str, str]) -> None:
    most = max(2, *(int(getattr(report.train, side).max()) for side in ("prompt", "chosen", "rejected")))
    bins = np.geomspace(1, most, 50)
    for side in ("prompt", "chosen", "rejected"):
        values = np.maximum(1, getattr(report.train, side))
        axes.hist(values, bins, histtype="step", color=colors[side], label=side, lw=1.5)
    axes.set(xscale="log", xlabel="tokens", ylabel="pairs")
    axes.legend(frameon=False, loc="upper right")


def _bias(axes: Any, report: Report, colors: dict[str, str]) -> None:
    train: Numbers = report.train
    difference = train.chosen - train.rejected
    edge = max(1, int(np.quantile(np.abs(difference), 0.99)))
    bins = np.linspace(-edge, edge, 51)
    clipped = np.clip(difference, -edge, edge)
    axes.hist(clipped[difference > 0], bins, color=colors["chosen"], label="chosen is longer")
    axes.hist(clipped[difference < 0], bins, color=colors["rejected"], label="rejected is longer")
    axes.set(xlabel="tokens", ylabel="pairs")
    axes.legend(frameon=False, loc="upper right")


def _whole(axes: Any, report: Report, colors: dict[str, str]) -> None:
    whole = np.sort(report.train.longest + report.train.cut)
    axes.plot(whole, np.arange(1, len(whole) + 1) / len(whole), color=colors["prompt"], lw=1.5, drawstyle="steps-post")
    axes.axvline(report.max_length, color=colors["faint"], ls="--", lw=1)
    axes.set(xlabel="tokens", ylabel="share of pairs", ylim=(0, 1.02), xlim=(0, None))


def _sharing(axes: Any, report: Report, colors: dict[str, str]) -> None:
    _, counts = np.unique(report.train.prompt_hash, return_counts=True)
    sizes, prompts = np.unique(np.minimum(counts, 20), return_counts=True)
    axes.bar([f"{size}{'+' if size == 20 else ''}" for size in sizes], prompts, color=colors["prompt"])
    axes.set(xlabel="pairs per prompt", ylabel="prompts")


def _work(axes: Any, report: Report, colors: dict[str, str]) -> None:
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
